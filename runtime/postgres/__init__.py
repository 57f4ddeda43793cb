"""PostgreSQL: pools, named SQL blocks, and reads from replicas by position."""
