"""Money: the payments and refunds of orders, and the providers that move it.

`providers/` speaks to a payment provider. `ledger.py` keeps the rows of payments and refunds in the shards.
`settling.py` takes a payment from the provider's event to its final state.
"""
