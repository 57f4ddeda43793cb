"""Orders of all buyers, for staff."""
