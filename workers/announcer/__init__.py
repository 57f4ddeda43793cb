"""Announcer: turns events of orders and payments into notices, one queue for each channel.

It is a process of its own because it needs neither the mail server's password nor the keys of links and web push, and
because its troubles must not end letters of accounts. Each channel has its own group in the event log, its own lease
and its own queue: a push service that is slow fills the queue of pushes, and holds up no letter.

The result of a crash after each step:

    published, position not committed     published again with the same ids; senders drop ids that they have sent
    position committed                    the events are done
"""
