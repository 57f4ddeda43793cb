"""`faults`: break stacks on purpose, under load, and report whether all invariants hold."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from faults.catalogue import FAULTS
from faults.conditions import Door
from faults.drill import STEADY_S, Result
from faults.run import run_faults
from faults.scenario import Fault
from ops.commands.options import AsJson, print_json
from runtime.process.errors import OperatorError


def faults(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Faults to run; default: all.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the faults; run none.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Only the faults that `make test` runs.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeat the run with this seed; each run prints its seed.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Seconds of buying before each fault.")] = STEADY_S,
    door: Annotated[
        Door, typer.Option(help="The doors of the edge that buyers use; a fault at a door attacks one of them.")
    ] = Door.BOTH,
    as_json: AsJson = False,
) -> None:
    """Break stacks on purpose, under load, and check all invariants.

    Each fault runs on a stack of its own or of its group; then stored data is compared with the clients' history.
    Leaves no process behind. Exit status 1 if an invariant was broken or a fault did not fire.
    """
    chosen = _chosen(names or [], fast=fast)
    if list_:
        _print_list(chosen, as_json=as_json)
        return
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    if not as_json:
        print(f"seed {seed}, door: {door}")
    console = Console(stderr=True)
    results: list[Result] = []
    with console.status("faults") as shown:  # shows nothing unless stderr is a terminal
        for result in run_faults(chosen, seed=seed, seconds=seconds, say=shown.update, door=door):
            results.append(result)
            if not as_json:
                sys.stdout.write(_as_text(result))
                sys.stdout.flush()
    red = [result for result in results if not result.is_green and not result.skipped]
    if as_json:
        print_json(
            {"seed": seed, "door": door, "faults": [result.as_document() for result in results], "red": len(red)}
        )
    else:
        skipped = sum(bool(result.skipped) for result in results)
        print(f"{len(results) - len(red) - skipped} green, {len(red)} red, {skipped} skipped")
    raise typer.Exit(1 if red else 0)


def _chosen(names: list[str], *, fast: bool) -> list[Fault]:
    if unknown := sorted(set(names) - FAULTS.keys()):
        raise OperatorError(f"no such fault: {', '.join(unknown)}; see `flashsale faults --list`")
    return [fault for fault in FAULTS.values() if (not names or fault.name in names) and (fault.fast or not fast)]


def _print_list(chosen: list[Fault], *, as_json: bool) -> None:
    if as_json:
        print_json([{"name": f.name, "does": f.about, "expected": f.expected, "fast": f.fast} for f in chosen])
        return
    width = max((len(fault.name) for fault in chosen), default=0)
    for fault in chosen:
        print(f"{fault.name:<{width}} {fault.about}\n{'':<{width}} -> {fault.expected}")
    print(f"{len(chosen)} faults")


def _as_text(result: Result) -> str:
    document: dict[str, Any] = result.as_document()
    lines = [
        f"{document['verdict'].upper():<8}{result.name:<30} {result.took_s:5.1f} s  {result.skipped or result.proof}"
    ]
    if not result.skipped:
        healed = "not measured" if result.healed_s is None else f"healed after {result.healed_s:.1f} s"
        drained = "not drained" if result.drained_s is None else f"drained after {result.drained_s:.1f} s"
        lines.append(
            f"        {result.requests} requests: {result.accepted} accepted, {result.refused} refused, "
            f"{result.unknown_attempts} unknown at first, {result.payments} payments; {healed}, {drained}"
        )
        kept = [letter for letter, holds in document["invariants"].items() if holds]
        lines.append(f"        {' '.join(kept)} hold" if kept else "        no invariant holds")
    lines += [f"        {finding.invariant} BROKEN: {finding.text}" for finding in result.findings]
    return "\n".join(lines) + "\n"
