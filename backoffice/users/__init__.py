"""Accounts, sharded by the user's virtual bucket, found by address through an index sharded by the address's hash."""
