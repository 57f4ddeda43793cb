"""Requests to addresses that strangers named: only checked, public addresses are connected to."""
