"""Dispatcher: delivers the rows of the outbox tables to their destinations, and deletes those that were acknowledged.

One lease covers all partitions of one (database, destination), not one each: 4 leases with their renewals instead of
64, and one query for a page of all partitions. The gains of a lease per partition are kept: a partition has at most
one delivery under way, in id order, so its order holds; and a partition that fails pauses alone, while the others go
on. The loss: the partitions of one database cannot be spread over several processes, which its rate does not need.
"""
