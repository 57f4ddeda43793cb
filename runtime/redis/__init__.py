"""Redis: the client, the one loader of Lua scripts, leases with fencing tokens."""
