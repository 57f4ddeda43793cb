"""The compiled order path: leaf code, bytes in and bytes out, no I/O; names and limits are passed in. Scripts in `lua/`."""
