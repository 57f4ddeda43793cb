"""Recovery: closes lanes whose Redis lost data, records the losses, and rebuilds sales."""
