"""Lua scripts of the reservation Redis; `reservation.scripts` loads them."""
