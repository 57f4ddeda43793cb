"""Dispatcher: moves what transactions left in the outbox tables to where it is told, and deletes what was acknowledged.

One lease covers all partitions of one (database, destination), not one each: 4 leases with their renewals instead of 64,
and one query for a page of all partitions. What a lease per partition would give is kept without it: a partition has at
most one delivery under way, in id order, so its order holds; and a partition that fails pauses alone, while the others
go on. What is lost is spreading the partitions of one database over several processes, which its rate does not need.
"""
