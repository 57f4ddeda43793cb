"""An idle stack asks little of its servers: counts, which do not depend on the machine as processor time does."""

from __future__ import annotations

from perf.idle import count
from tests.fixtures.fix_stack import RunningStack

# Measured: 238 and 13 (without announcer, payments and push: 112 and 9; before loops shared round trips: 142 and 17).
# The rest is for sales that other tests left on sale.
REDIS_COMMANDS_PER_S_MAX = 270
TRANSACTIONS_PER_S_MAX = 17  # of one database
LOOKS_MAX = 6  # until the stack has come to rest after its start, or after another test


def test_an_idle_stack_asks_little(running_stack: RunningStack) -> None:
    for _ in range(LOOKS_MAX):
        counted = count(running_stack.stack, seconds=3.0)
        commands, transactions = sum(counted.redis_per_s.values()), max(counted.transactions_per_s.values())
        if commands < REDIS_COMMANDS_PER_S_MAX and transactions < TRANSACTIONS_PER_S_MAX:
            break
    else:
        raise AssertionError(f"never at rest: {counted}")
    assert len(counted.transactions_per_s) == 1 + len(running_stack.stack.shard_dsns)
    assert counted.redis_per_s["evalsha"] > 0, "the processes run"
    assert transactions > 0
