"""Webhook worker: events of the log to the URLs that staff subscribed.

Two halves share one lease. `intake` reads the topics and stores a delivery for each webhook and event; `sender` sends
what is due. They meet in the table `webhook_deliveries` only.

The result of a crash after each step:

    deliveries stored, position not committed      the events are read again; the unique key drops them
    request sent, answer not stored                the delivery is sent again with the same `webhook-id`
    answer stored                                  the attempt is done
    webhook disabled, notice not published         published when the worker looks again
    notice published, not noted                    published again with the same id; senders drop it
"""
