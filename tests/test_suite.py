"""The closing line and the exit status of `python -m tests`, and the ports of processes beside each other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from devstack.children import PORTS_VARIABLE, free_port, ports_to_choose_from
from tests.__main__ import closing_line, slowest, status_of
from tests.fixtures.workers import LONGEST_FIRST, ports_of_worker

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"passed": 2398, "skipped": 3}, "2398 passed, 0 failed, 3 skipped in 612.3s"),
        ({"failed": 1, "passed": 7, "error": 2, "rerun": 1}, "7 passed, 1 failed, 2 error, 1 rerun in 612.3s"),
        ({}, "0 passed, 0 failed in 612.3s"),
    ],
)
def test_closing_line(counts: dict[str, int], line: str) -> None:
    assert closing_line(Counter(counts), 612.34) == line


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([0, 0], 0),
        ([0, 5], 0),
        ([5, 0], 0),
        ([5, 5], 5),
        ([1, 0], 1),
        ([0, 1], 1),
        ([5, 1], 1),
        ([2], 2),
        ([-9, 0], -9),
    ],
)
def test_a_part_without_tests_is_no_failure(statuses: list[int], status: int) -> None:
    assert status_of(statuses) == status


def test_slowest_first() -> None:
    durations = [(0.5, "call", "a"), (12.25, "setup", "b"), (3.0, "call", "c")]
    assert slowest(durations, 2) == ["12.25s setup    b", "3.00s call     c"]


def test_processes_share_the_ports_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORTS_VARIABLE, raising=False)
    every = ports_to_choose_from()
    shares = [ports_of_worker(f"gw{number}", 4) for number in range(4)]
    assert sum(len(share) for share in shares) >= len(every) - 4
    assert len({port for share in shares for port in share}) == sum(len(share) for share in shares)
    assert all(port in every for share in shares for port in share)
    monkeypatch.setenv(PORTS_VARIABLE, f"{every.start}-{every.start + 20}")
    assert {free_port() for _ in range(20)} <= set(range(every.start, every.start + 21))


def test_files_that_start_first_exist() -> None:
    assert [file for file in LONGEST_FIRST if not (ROOT / file).is_file()] == []
