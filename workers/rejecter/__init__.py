"""Rejects orders that wait for a unit that PostgreSQL can no longer grant."""
