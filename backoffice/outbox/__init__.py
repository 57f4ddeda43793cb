"""The outbox of a shard: rows written in the transaction that they describe. The dispatcher sends them later."""
