"""Relay: moves order entries from the lanes' streams to the shards' queues, and trims confirmed entries."""
