"""The scripts' headers are right: keys, arguments and outputs, compared with the names and with `domain.outcomes`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import pytest

from domain.orders import OrderStatus
from domain.outcomes import (
    ClearAnswer,
    CreditAnswer,
    DefineAnswer,
    ForgetAnswer,
    LeftAnswer,
    LendAnswer,
    LoadAnswer,
    Outcome,
    RebuildAnswer,
    RestockAnswer,
    Transition,
)
from reservation import scripts
from tests.reservation.lane import ALL_SCRIPTS

SCRIPTS = {script.name: script for script in ALL_SCRIPTS}
FOLDER = Path(scripts.__file__).parent / "lua"
BATCH = ("reserve-2-2n", "lookup-2-2n")
CHANGES = ("cancel-4", "settle-5", "expire-4", "reject-4")
_OUTPUT = re.compile(r"(-?[0-9]+) ([A-Z_]+\b)?.*")


@dataclass(frozen=True, slots=True)
class Header:
    flags: tuple[str, ...]
    purpose: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    outputs: dict[int, str]  # number -> name, empty where the output has none


def read_header(name: str) -> Header:
    """The comment at the top of a script, by section."""
    lines = (FOLDER / f"{name}.lua").read_text().splitlines()
    first = re.fullmatch(r"#!lua(?: flags=([a-z,-]+))?", lines[0])
    assert first is not None, lines[0]
    sections: dict[str, list[str]] = {"purpose": []}
    section = "purpose"
    for line in lines[1:]:
        if not line.startswith("--") or line.startswith("---"):
            break
        text = line[2:].strip()
        if text in ("KEYS", "ARGV", "Outputs"):
            section = text
            sections[section] = []
        elif text.startswith("Returns "):
            section = "Returns"
            sections[section] = [text]
        elif text:
            sections[section].append(text)
    outputs = {}
    for text in sections["Outputs"]:
        match = _OUTPUT.fullmatch(text)
        assert match is not None, text
        outputs[int(match[1])] = match[2] or ""
    return Header(
        tuple((first[1] or "").split(",")),
        " ".join(sections["purpose"]),
        tuple(sections["KEYS"]),
        tuple(sections["ARGV"]),
        outputs,
    )


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_header_is_complete(name: str) -> None:
    header = read_header(name)
    assert header.purpose and header.args and header.outputs
    script = SCRIPTS[name]
    assert script.key_count is not None
    assert len(header.keys) == script.key_count + script.keys_per_request
    numbers = [key.split()[0] for key in header.keys]
    assert numbers == [str(at + 1) for at in range(len(numbers))]


def assert_outputs_are(header: Header, kind: type[IntEnum], missing: set[IntEnum]) -> None:
    expected = {int(member): member.name for member in kind if member not in missing}
    assert header.outputs == expected


def test_batch_outputs_are_the_outcomes() -> None:
    assert_outputs_are(read_header("reserve-2-2n"), Outcome, {Outcome.HAS_STOCK})
    assert_outputs_are(read_header("lookup-2-2n"), Outcome, {Outcome.ACCEPTED, Outcome.UNITS_ELSEWHERE})


def test_change_outputs_are_the_transitions() -> None:
    assert_outputs_are(read_header("cancel-4"), Transition, {Transition.NOT_DUE})
    assert_outputs_are(read_header("settle-5"), Transition, {Transition.NOT_DUE})
    assert_outputs_are(read_header("expire-4"), Transition, set())
    assert_outputs_are(read_header("reject-4"), Transition, {Transition.NOT_DUE})


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("load-1", LoadAnswer), ("define-1", DefineAnswer), ("restock-2", RestockAnswer), ("forget-1", ForgetAnswer),
        ("restore-2-1n", RebuildAnswer), ("reopen-4", RebuildAnswer),
        ("lend-2", LendAnswer), ("credit-2", CreditAnswer), ("clear-2", ClearAnswer), ("left-1", LeftAnswer),
    ],
)  # fmt: skip
def test_outputs_of_other_scripts_are_their_answers(name: str, answer: type[IntEnum]) -> None:
    assert_outputs_are(read_header(name), answer, set())


def constants(fragment: str) -> dict[str, int]:
    text = (FOLDER / "shared" / f"{fragment}.lua").read_text()
    return {name: int(value) for name, value in re.findall(r"^local ([A-Z_]+) = ([0-9]+)$", text, re.MULTILINE)}


def test_constants_are_those_of_the_domain() -> None:
    # The answer to a replay is its record: no script needs its number.
    assert constants("outcomes") == {o.name: int(o) for o in Outcome if o is not Outcome.REPLAYED}
    statuses = {s.name: int(s) for s in OrderStatus}
    assert constants("transitions") == {t.name: int(t) for t in Transition} | statuses


def test_flags_say_what_may_run_with_full_memory() -> None:
    flags = {name: read_header(name).flags for name in sorted(SCRIPTS)}
    assert flags["lookup-2-2n"] == ("no-writes",)
    for name in (*CHANGES, "define-1", "forget-1", "trim-2", "close-2", "credit-2", "clear-2", "left-1"):
        assert flags[name] == ("allow-oom",), name
    for name in ("reserve-2-2n", "load-1", "restock-2", "restore-2-1n", "reopen-4", "lend-2"):
        assert flags[name] == ("",), name
