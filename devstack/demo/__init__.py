"""The demo: a whole sale under load on a stack of its own, one crash, and a recount of every order and payment."""
