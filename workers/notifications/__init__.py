"""Notices become e-mail and web push: taken off the queue of their channel, written, handed over, acknowledged.

Letters go to a mail server by SMTP, pushes to the push services of the account's browsers. Each channel has senders of
its own, so that one that is slow holds up no other.

The result of a crash after each step:

    the token's hash stored                     the same secret is derived again, and the same hash stored
    the server took the mail, not recorded      the mail goes out a second time, with the same bytes except its date:
                                                same Message-ID, same token. SMTP delivers at least once
    recorded as sent, not acknowledged          the notice comes again, is recognised, and is acknowledged
"""
