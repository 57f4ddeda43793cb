"""Backup of a deployment to one consistent point: the reservation Redis and all databases. Restore into empty folders.

    base copies   of each PostgreSQL server, while everything runs; with an earlier backup only changed blocks
    freeze        workers stand still, orders are accepted (`freeze`)
    the point     Redis forks its copy, then each database server gets a restore point
    thaw          workers go on; the copy of Redis and the write-ahead log up to the point are fetched
    manifest      written last: a folder without it is no backup

The databases are taken after Redis, and no worker moves an order in between. So every order that Redis had passed on
was stored, and every stored order is known to Redis: the invariants A and B hold in the restored state.

The event log of Kafka and the queues of RabbitMQ are not part of it. The queues of orders are empty at the point.
"""
