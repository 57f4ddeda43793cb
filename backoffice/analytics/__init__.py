"""Figures of a sale over time, from the analytics database: points, sell-out moments, times to pay, a projection."""
