"""Products: what can be put on sale."""
