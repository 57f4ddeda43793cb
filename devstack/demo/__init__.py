"""The demo: a whole sale under load on a stack of its own, one crash, and a report that recounts every order."""
