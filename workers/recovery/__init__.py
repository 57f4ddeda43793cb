"""Recovery: closes lanes that lost data in Redis, records the losses, and rebuilds sales."""
