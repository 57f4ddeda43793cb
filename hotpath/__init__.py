"""The compiled order path: leaf code, bytes in and bytes out. Performs no I/O; callers pass in names and limits."""
