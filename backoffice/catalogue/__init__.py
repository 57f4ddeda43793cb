"""Products: reading, searching, changing and importing them."""
