"""Rates of users: exact for each user, shared by processes, bounded in memory."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge.user_rates import shared_rates
from hotpath.rates import UserRates

SECOND_US = 1_000_000


def rates(sets: int = 1024, *, interval_us: int = 100_000, burst: int = 20) -> UserRates:
    return UserRates(bytearray(64 * sets), interval_us=interval_us, burst=burst)


def test_a_burst_then_one_for_each_interval() -> None:
    table, now_us = rates(), 5 * SECOND_US
    assert [table.take(7, now_us) for _ in range(22)] == [0] * 20 + [100_000] * 2
    assert table.take(7, now_us + 99_999) == 1
    assert table.take(7, now_us + 100_000) == 0
    assert table.take(8, now_us) == 0, "another user"
    later_us = now_us + 60 * SECOND_US
    assert [table.take(7, later_us) for _ in range(21)] == [0] * 20 + [100_000]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300_000)), max_size=200))
def test_no_user_ever_gets_more_than_the_rate_allows(steps: list[tuple[int, int]]) -> None:
    table, now_us = rates(interval_us=50_000, burst=5), SECOND_US
    taken: dict[int, list[int]] = {}
    for user, step_us in steps:
        now_us += step_us
        if table.take(user + 1, now_us) == 0:
            times = taken.setdefault(user, [])
            times.append(now_us)
            for back in range(5, len(times)):
                assert times[-1] - times[-1 - back] >= (back - 4) * 50_000 - 50_000


def test_a_full_set_replaces_the_user_that_was_quiet_longest() -> None:
    table = rates(1, interval_us=SECOND_US, burst=1)
    for user in (1, 2, 3, 4):
        assert table.take(user, user) == 0
    assert table.take(5, 10) == 0, "in the place of user 1"
    assert [table.take(user, 20) > 0 for user in (2, 3, 4, 5)] == [True] * 4
    assert table.take(1, 30) == 0


def test_workers_share_the_rates(tmp_path: Path) -> None:
    """Several processes at once get one burst together."""
    program = (
        "import sys; from pathlib import Path; from edge.user_rates import shared_rates; "
        "from hotpath.rates import UserRates; "
        "table = UserRates(shared_rates(Path(sys.argv[1])), interval_us=10**12, burst=2000); "
        "print(sum(table.take(99, 1) == 0 for _ in range(5000)))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sum(int(worker.communicate()[0]) for worker in workers) == 2000
    assert isinstance(shared_rates(tmp_path), mmap.mmap)
    assert UserRates(shared_rates(tmp_path), interval_us=10**12, burst=2000).take(99, 1) > 0
