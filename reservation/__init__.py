"""The reservation Redis: Lua scripts, a typed gateway to the lanes, documents of sales, and reads of lane state."""
