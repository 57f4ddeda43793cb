"""The demo: a whole sale under load on a stack of its own, a crash on the way, and a report that recounts every order."""
