"""Shard writer: takes messages of orders off the shards' queues and stores them, guarded against overselling."""
