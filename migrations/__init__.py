"""Numbered SQL for the catalogue and the shard databases, and the runner that applies it."""
