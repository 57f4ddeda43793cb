"""The places of virtual buckets in a running process: the map of those that moved, and the gate of each shard."""
