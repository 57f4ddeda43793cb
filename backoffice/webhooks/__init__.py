"""Outgoing webhooks, for staff: URLs that get the events of the shop, and the log of their deliveries."""
