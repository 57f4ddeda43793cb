"""Accounts, sharded by the virtual bucket of the user, and the login index, sharded by the hash of the address."""
