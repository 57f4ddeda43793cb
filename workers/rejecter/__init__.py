"""Rejecter: rejects orders that wait for a unit which PostgreSQL can no longer grant."""
