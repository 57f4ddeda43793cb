"""The reservation Redis: Lua scripts and a typed gateway to the lanes of a sale."""
