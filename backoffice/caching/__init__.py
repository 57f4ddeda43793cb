"""Rows that are read far more often than changed, kept in two tiers: this process's memory, and the cache Redis.

    cache = caches.add("product", encode=..., decode=..., schema=1)
    product = await cache.get(str(product_id), load)     # cache-aside
    async with cache.changing(str(product_id)):          # around the write, not after it
        ...

What is promised:

- After `changing` ends nobody reads the old row: not in this process, not in Redis, and in other processes not once the
  message has arrived. A message that is lost heals with the process tier's time to live (bounded, seconds).
- A slow reader cannot put an old row back. It fills Redis only while the lease that it was given at its miss still
  stands there, and a change takes every lease away (Nishtala et al., Scaling Memcache at Facebook, section 3.2.1).
- A writer that dies in the middle leaves its mark in Redis: readers go to the database until the mark ends by itself.
- Many readers of one absent row load it once: one flight in a process, one lease over all processes.
- Redis away costs a bounded time, then nothing (a breaker), and is never an error to the caller.
"""
