"""Dispatcher: delivers the rows of the outbox tables to their destinations, and deletes those that were acknowledged.

One lease covers a database: 4 leases with their renewals instead of 192 for each destination and partition, and one
query for a page of all of them. The gains of a lease per partition are kept: a partition has at most one delivery under
way, in id order, so its order holds; and a partition that fails or is slow pauses alone, while the others go on. The
loss: the partitions of one database cannot be spread over several processes, which its rate does not need.
"""
