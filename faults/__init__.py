"""Faults on purpose: real stacks under load, broken in one way each, and a checker that compares what clients saw with
what Redis, PostgreSQL and the event log hold. `flashsale faults` runs them; `docs/reliability.md` has the results.
"""
