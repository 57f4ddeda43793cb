"""Caches of rows that are read far more often than changed, in two tiers: process memory and the cache Redis.

    cache = caches.add("product", encode=..., decode=..., schema=1)
    product = await cache.get(str(product_id), load)     # cache-aside
    async with cache.changing(str(product_id)):          # around the write, not after it
        ...

Guarantees:

- After `changing` ends, no reader of this process or of Redis gets the old row, and no reader of another process that
  has received the message. After a lost message, the old row ends with the time to live of the process tier (seconds).
- A slow reader cannot put an old row back. It fills Redis only while the lease from its miss is still in place, and a
  change removes every lease (Nishtala et al., Scaling Memcache at Facebook, section 3.2.1).
- A writer that crashes leaves its mark in Redis: readers go to the database until the mark expires.
- Many readers of one row that is not cached load it once: one flight in a process, one lease over all processes.
- An unavailable Redis costs a bounded time, then nothing (a circuit breaker), and is never an error for the caller.
"""
