"""Expiry: collects holds past their time, gives their units back, and clears Redis of sales that ended long ago."""
