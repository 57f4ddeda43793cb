"""The calculations behind the figures, on numbers with known results."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf import broker, gate, results
from perf.driver.histogram import count_from, percentiles_ms, sparse, summed
from perf.driver.loop import bucket_index
from perf.flatness import Point, Sample, summarise
from perf.growth import fit
from perf.open_loop import merge
from perf.peers.building import LANGUAGES, PeerNotBuilt
from perf.pipeline import rates
from perf.processes import cpu_us, end, halted, memory_bytes, state, tree
from perf.results import Figure, Target, conclude
from perf.scene import Run, unwanted
from perf.wrk import Answers
from tests.fixtures.fix_stack import eventually


def test_fit_finds_the_line_and_its_error() -> None:
    exact = fit([(x, 3.0 * x + 7.0) for x in range(10)])
    assert (exact.slope, exact.error) == (pytest.approx(3.0), pytest.approx(0.0, abs=1e-12))
    # By hand: x 0..3, y 0 1 1 2: slope 3 / 5, squared rest 0.2, error sqrt(0.2 / 2 / 5).
    rough = fit([(0, 0), (1, 1), (2, 1), (3, 2)])
    assert (rough.slope, rough.error) == (pytest.approx(0.6), pytest.approx(0.02**0.5))


def test_targets_are_met_up_to_and_with_their_bound() -> None:
    assert Target("t", 5.0, "s", least=5.0).met and not Target("t", 4.99, "s", least=5.0).met
    assert Target("t", 5.0, "s", most=5.0).met and not Target("t", 5.01, "s", most=5.0).met
    assert str(Target("stored", 6061.2, "a second", least=5000, goal=10_000)) == (
        "stored: 6,061 a second, >= 5,000 (goal 10,000): met"
    )


def _document(value: float) -> dict[str, Any]:
    figure = Figure("width", "a ruler", [Target("width", value, "m", most=2.0)], {"raw": [1, 2]})
    return figure.document(argparse.Namespace(seconds=3, save=True, json=False, gate=False))


def test_a_figure_says_where_it_comes_from() -> None:
    document = _document(1.5)
    assert document["method"] == "a ruler" and document["arguments"] == {"seconds": 3}
    assert set(document["machine"]) == {"cores", "memory", "kernel", "Python", "Redis", "PostgreSQL"}
    assert all(document["machine"].values()) and document["at"].endswith("Z")
    assert document["targets"][0]["met"] is True


def test_saved_figures_make_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    results.save(_document(2.5))
    results.save({**_document(1.5), "name": "other"})
    table = (tmp_path / "results" / "README.md").read_text(encoding="utf-8")
    assert "| [width](width.json) | width | 2.5 m | <= 2 | **missed** |" in table
    assert "| [other](other.json) | width | 1.5 m | <= 2 | met |" in table
    assert table.count("Machine: cores") == 1


@pytest.mark.parametrize(("value", "gate", "status"), [(1.0, True, 0), (3.0, True, 1), (3.0, False, 0)])
def test_only_a_gate_fails(value: float, gate: bool, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    figure = Figure("width", "a ruler", [Target("width", value, "m", most=2.0)], {})
    assert conclude(figure, argparse.Namespace(save=False, json=False, gate=gate), ["a line"]) == status
    assert capsys.readouterr().out.startswith("a line\nwidth: ")


def test_histograms_add_up() -> None:
    one, other = [0] * 100, [0] * 100
    one[3], one[50], other[50], other[99] = 1, 2, 3, 4
    both = summed([sparse(one), sparse(other)])
    assert both == [[3, 1], [50, 5], [99, 4]]
    assert count_from(both, 50) == 9 and count_from(both, 51) == 4
    assert percentiles_ms(both) == {"p50": 0.05, "p95": 0.099, "p99": 0.099, "p99.9": 0.099, "max": 0.099}


def test_drivers_are_merged_by_their_histograms() -> None:
    def final(latency_us: int) -> dict[str, Any]:
        return {
            "sent": 10, "accepted": 10, "retries": 1, "transport_errors": 0, "cpu_s": 0.0001, "refused": 0,
            "accepted_latency": [[bucket_index(latency_us), 10]], "accepted_per_100ms": [4, 4, 2],
            "open_loop": {"rate": 50.0, "orders": 10, "lateness": [[bucket_index(2000), 1], [3, 9]],
                          "found_none_idle": 2},
        }  # fmt: skip

    merged = merge([final(10), final(60)], seconds=0.2)
    assert merged["due"] == merged["sent"] == merged["accepted"] == 20
    assert merged["accepted_per_s"] == pytest.approx(80.0)  # answers after the end of the schedule do not count
    assert merged["latency_ms"]["p50"] == 0.01 and merged["latency_ms"]["p99"] == 0.06
    assert merged["sent_a_millisecond_late"] == 2 and merged["found_none_idle"] == 4
    assert merged["generator_cpu_us_an_order"] == pytest.approx(10.0)


def test_the_ratio_of_carriers_is_the_median_of_pairs() -> None:
    rounds = [
        {"redis": {"stored_per_s": redis}, "rabbitmq": {"stored_per_s": rabbitmq}}
        for redis, rabbitmq in ((100, 90), (200, 100), (50, 40))
    ]
    assert broker.summary(rounds) == {"ratio": 0.8, "rabbitmq_per_s": 90, "redis_per_s": 100}


def test_rates_are_from_the_first_sample_to_the_last() -> None:
    def at(second: float, accepted: int, stored: int) -> dict[str, float]:
        return {
            "at_s": second, "accepted": accepted, "stored": stored, "unrelayed": stored % 7, "queued_messages": 1,
            "unstored": accepted - stored,
        }  # fmt: skip

    seen = rates([at(3.0, 300, 100), at(4.0, 900, 200), at(5.0, 1300, 1100)])
    assert seen["accepted_per_s"] == 500 and seen["stored_per_s"] == 500
    assert seen["unstored_max"] == 700


def test_a_point_is_held_against_the_base_beside_it() -> None:
    slow, fast = Sample(1000, 60, 20), Sample(2000, 30, 10)
    row = summarise(Point(10, 100), [(slow, slow), (fast, fast), (fast, Sample(1000, 60, 20))])
    assert row["cost_ratio"] == 1 and row["rate_ratio"] == 1  # medians: one outlier does not decide
    assert (row["sales"], row["users"], row["edge_us"]) == (10, 100, 60)


def test_processor_time_counts_children_that_have_ended() -> None:
    burn = "sum(i for i in range(6_000_000))"
    parent = (
        "import subprocess,sys; subprocess.run([sys.executable,'-c',sys.argv[1]]); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in tree(os.getpid())
        assert cpu_us(tree(process.pid)) >= 50_000
        memory = memory_bytes(process.pid)
        assert memory["resident"] >= memory["anonymous"] > 0
        process.kill()
    assert cpu_us([process.pid]) == 0


def _answers(requests: int, *, not_2xx: int = 0, broken: int = 0, p99_us: int = 1000) -> Answers:
    return Answers(requests, 1_000_000, not_2xx, broken, 1, 1, p99_us, 1, 1)


def _run(name: str, requests: int, *, promised: int = 0, found: int = 0, cpu_us: float = 1.0, **more: int) -> Run:
    return Run(name, f"{name}1", _answers(requests, **more), promised, 0, cpu_us, 1.0, 1.0, 0.0, 0, found)


GATE_ARGUMENTS = {"connections": 128, "users": 100_000, "workers": 1, "fsync": "always", "set": []}


def _gate(*runs: Run) -> dict[str, Target]:
    targets = gate.targets(gate.Measured(list(runs), 1.0), argparse.Namespace(**GATE_ARGUMENTS))
    return {target.name: target for target in targets}


def test_a_202_that_is_not_in_a_shard_does_not_count_and_fails_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    a, c = _run("A", 100, cpu_us=20.0, p99_us=1000), _run("C", 80)
    direct = _run("D", 90, promised=90, found=90, cpu_us=10.0, p99_us=2000), _run("E", 130)
    # wrk did not wait for two answers any more: their orders exist and are not lost.
    whole = _gate(a, _run("B", 60, promised=62, found=62, p99_us=5000), c, *direct)
    assert all(target.met for target in whole.values())
    assert whole["B/A"].value == 0.6 and whole["C/A"].value == 0.8 and whole["p99(B)/p99(A)"].value == 5.0
    assert whole["server time of D / A"].value == 0.5
    early = gate.Measured([a, _run("B", 40, promised=40, found=40), c], 1.0, [_run("B", 5, promised=5, found=4)])
    assert early.total("missing") == 1 and early.rates()["B"] == 40
    lossy = _gate(a, _run("B", 60, promised=62, found=59), c, *direct)
    assert lossy["B/A"].value == pytest.approx(0.57)
    assert lossy["of 152 202s, not found"].value == 3
    assert not lossy["of 152 202s, not found"].met


def test_the_direct_door_is_held_against_the_fastest_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    ours = [_run("A", 100), *(_run(name, 100, promised=100, found=100) for name in "BCDE")]
    assert not [name for name in _gate(*ours) if "Rust" in name or "Go" in name]
    assert "without peers" in capsys.readouterr().err
    peers = [_run("Go", 90, promised=90, found=90), _run("Rust", 120, promised=120, found=120)]
    against = _gate(*ours, *peers)["D/Rust"]
    assert against.value == pytest.approx(100 / 120) and not against.met
    # A peer that has promised more than it has stored is not fast.
    peers[1] = _run("Rust", 120, promised=120, found=40)
    assert "D/Go" in _gate(*ours, *peers)


def test_a_peer_without_its_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name, package in (("Go", "golang-go"), ("Rust", "cargo")):
        with pytest.raises(PeerNotBuilt, match=f"Debian package `{package}`"):
            LANGUAGES[name].build()


@pytest.mark.parametrize(
    ("name", "answers", "outcomes", "expected"),
    [
        ("A", _answers(10), {}, 0),
        ("A", _answers(10, not_2xx=2, broken=1), {}, 3),
        ("B", _answers(10), {"accepted": 12}, 0),
        ("B", _answers(10, not_2xx=2), {"accepted": 8, "overloaded": 2}, 2),
        ("B", _answers(10), {"accepted": 10, "replayed": 1}, 1),
        ("C", _answers(10, not_2xx=10), {"sold_out": 10}, 0),
        ("C", _answers(10, not_2xx=10), {"sold_out": 7, "overloaded": 3}, 3),
        ("C", _answers(10, not_2xx=9, broken=1), {"sold_out": 9}, 2),
        ("D", _answers(10, not_2xx=1), {"accepted": 9, "overloaded": 1}, 1),
        ("E", _answers(10, not_2xx=10), {"sold_out": 10}, 0),
        ("Rust", _answers(10, not_2xx=1), {}, 1),
    ],
)
def test_what_a_run_did_not_ask_for(name: str, answers: Answers, outcomes: dict[str, int], expected: int) -> None:
    assert unwanted(name, answers, {**outcomes, "ended": 0}) == expected


def test_the_gate_is_held_against_the_kept_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    ratios = {"B/A": 0.40, "C/A": 0.50}
    assert gate.against_baseline(ratios, GATE_ARGUMENTS) == []
    kept = {
        "commit": "abc", "arguments": {**GATE_ARGUMENTS, "seconds": 15},
        "result": {"rates": {"A": 100, "B": 50, "C": 63}},
    }  # fmt: skip
    (tmp_path / "gate.json").write_text(json.dumps(kept), encoding="utf-8")
    held = gate.against_baseline(ratios, GATE_ARGUMENTS)
    assert [(target.name, target.value, target.met) for target in held] == [
        ("B/A against the kept 0.500 (abc)", pytest.approx(0.8), True),
        ("C/A against the kept 0.630 (abc)", pytest.approx(0.5 / 0.63), False),
    ]
    assert gate.against_baseline(ratios, GATE_ARGUMENTS | {"connections": 64}) == []
    assert "other arguments: not compared" in capsys.readouterr().err


def test_halted_processes_stand_still_and_go_on() -> None:
    parent = "import subprocess,sys; subprocess.run([sys.executable,'-c','print(flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        pids = tree(process.pid)
        try:
            with halted([process.pid]):
                seen = [state(pid) for pid in pids]
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert seen == ["T", "T"]
        assert all(state(pid) in "SR" for pid in pids)
        end(process)
        eventually(lambda: all(state(pid) in "ZX" for pid in pids))
