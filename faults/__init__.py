"""Fault injection: each fault breaks a real stack under load in one way. A checker then compares the clients' history
with the data in Redis, PostgreSQL and the event log. `flashsale faults` runs the faults; results are in
`docs/reliability.md`.

    conditions  <  stage  <  scenario  <  drill  <  run  <  command        `catalogue` lists the faults of `*_faults`
"""
