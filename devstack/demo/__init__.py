"""The demo: a whole sale under load on a stack of its own, one crash, payments, and a report that recounts orders and
money.
"""
