"""What the figures are calculated with, on numbers whose answer is known."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perf import results
from perf.driver.histogram import count_from, percentiles_ms, sparse, summed
from perf.driver.loop import bucket_index
from perf.flatness import Point, Sample, summarise
from perf.growth import fit
from perf.open_loop import merge
from perf.pipeline import rates
from perf.processes import cpu_us, memory_bytes, tree
from perf.results import Figure, Target, conclude


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
            "open_loop": {"rate": 50.0, "orders": 10, "lateness": [[bucket_index(2000), 1], [3, 9]], "found_none_idle": 2},
        }  # fmt: skip

    merged = merge([final(10), final(60)], seconds=0.2)
    assert merged["due"] == merged["sent"] == merged["accepted"] == 20
    assert merged["accepted_per_s"] == pytest.approx(80.0)  # what came after the schedule's end is not of its time
    assert merged["latency_ms"]["p50"] == 0.01 and merged["latency_ms"]["p99"] == 0.06
    assert merged["sent_a_millisecond_late"] == 2 and merged["found_none_idle"] == 4
    assert merged["generator_cpu_us_an_order"] == pytest.approx(10.0)


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
    assert row["cost_ratio"] == 1 and row["rate_ratio"] == 1  # medians: one odd pair does not decide
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
