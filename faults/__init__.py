"""Fault injection: each fault breaks a real stack under load in one way. A checker then compares the clients' history
with the data in Redis, PostgreSQL and the event log. `flashsale faults` runs them; `docs/reliability.md` has the
results.

    conditions  <  stage  <  scenario  <  drill  <  run  <  command        `catalogue` lists the faults of `*_faults`
"""
