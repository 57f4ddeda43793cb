"""Payments behind the edge: refunds through the provider, and what an interrupted settling left.

`refunder.py` consumes the queue of refunds. `sweep.py` finishes payments whose settling was interrupted, and compares
captured payments with their orders. `comparison.py` compares the provider's ledger with the shards.
"""
