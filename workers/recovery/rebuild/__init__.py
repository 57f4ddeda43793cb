"""Rebuild: gives Redis a sale again that it lost, from what PostgreSQL has, under a new epoch."""
