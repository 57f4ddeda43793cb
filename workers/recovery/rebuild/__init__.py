"""Rebuild: restores a sale that Redis lost from PostgreSQL, under a new epoch."""
