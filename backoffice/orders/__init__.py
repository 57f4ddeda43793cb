"""Orders of all buyers, for staff: list, filter, and one order with its history."""
