"""Worker processes: what happens to an order after it was accepted. Each package is one kind of process."""
