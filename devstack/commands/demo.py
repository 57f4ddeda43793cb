"""`demo`: run a whole sale under load and report."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from devstack.demo.rehearsal import Rehearsal
from devstack.demo.report import as_text
from ops.commands.options import AsJson, print_json


def demo(
    units: Annotated[int, typer.Option(min=100, max=5_000_000, help="Stock of all SKUs together.")] = 100_000,
    skus: Annotated[int, typer.Option(min=1, max=50, help="SKUs that share the stock.")] = 3,
    users: Annotated[int, typer.Option(min=10, max=2_000_000, help="Buyers, each with a token.")] = 50_000,
    connections: Annotated[int, typer.Option(min=1, max=4096, help="Connections of the load driver.")] = 96,
    sold_out_seconds: Annotated[float, typer.Option(min=1, max=600, help="Load after the last unit is gone.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Run a whole sale under load, kill Redis once, let some buyers pay, recount orders and money, and report.

    Runs on a stack of its own and leaves no process behind. Exit status 1 if a check failed.
    """
    rehearsal = Rehearsal(
        units=units, skus=skus, users=users, connections=connections, sold_out_s=sold_out_seconds
    )  # fmt: skip
    console = Console(stderr=True)
    with console.status("demo") as shown:  # shows nothing unless stderr is a terminal
        report = rehearsal.run(shown.update)
    if as_json:
        print_json(report)
    else:
        sys.stdout.write(as_text(report))
    raise typer.Exit(1 if report["failures"] else 0)
