"""`rotate-keys`: new keys for access tokens, without downtime."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from devstack.state import StackError
from ops.commands.options import DEFAULT_STATE_DIR, AsJson, StateDir, folder_of, print_json
from ops.key_rotation import RotationWaits, buyer_kind, plan, rotate, staff_kind


def rotate_keys(
    retire: Annotated[
        bool, typer.Option("--retire", help="End the old keys at once: a key was seen by somebody. Logs everybody out.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    wait_s: Annotated[float, typer.Option(min=1, max=3600, help="Wait so long for processes to follow a step.")] = 60.0,
    process: Annotated[
        list[str] | None,
        typer.Option(help="NAME=URL of a process outside of the stack, `edge...` or `backoffice...`; may be repeated."),
    ] = None,
    token_keys: Annotated[Path | None, typer.Option(help="Another file than the stack's, of buyers' keys.")] = None,
    staff_key: Annotated[Path | None, typer.Option(help="Another file than the stack's, of staff keys.")] = None,
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Give buyers' and staff tokens new keys while everything runs. May be repeated, and goes on where it was stopped."""
    folder = folder_of(state_dir)
    kinds = (buyer_kind(token_keys or folder.token_keys), staff_kind(staff_key or folder.staff_key))
    for kind in kinds:
        if not kind.path.exists():
            raise StackError(f"there is no {kind.path} yet: start a stack once with `flashsale up --detach`")
    stack = folder.read_stack()
    processes = dict(stack.metrics) if stack is not None and not (token_keys or staff_key) else {}
    for text in process or ():
        name, _, url = text.partition("=")
        if not url:
            raise typer.BadParameter(f"{text}: not NAME=URL", param_hint="--process")
        processes[name] = url.rstrip("/")
    if dry_run:
        _show({kind.name: plan(kind, retire=retire) for kind in kinds}, as_json=as_json)
        return
    outcomes: dict[str, Any] = {}
    try:
        with Console(stderr=True).status("Rotating keys") as status:  # shows nothing unless stderr is a terminal
            for kind in kinds:
                outcomes[kind.name] = rotate(kind, processes, retire=retire, wait_s_max=wait_s, say=status.update)
    except RotationWaits as error:
        _show(outcomes, as_json=as_json)
        print(f"flashsale: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    _show(outcomes, as_json=as_json)


def _show(outcomes: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(outcomes)
        return
    for name, outcome in outcomes.items():
        if "would" in outcome:
            print(f"{name:6} active {outcome['active']}: would {outcome['would']}")
            for kid in outcome["would_retire"]:
                print(f"{'':6} would retire {kid}")
            continue
        ends_at = outcome["previous_ends_at"]
        end = "is gone" if ends_at is None else f"ends at {datetime.fromtimestamp(ends_at, UTC):%Y-%m-%d %H:%M:%SZ}"
        print(
            f"{name:6} active {outcome['active']}, known to {', '.join(outcome['processes']) or 'no running process'}"
        )
        print(f"{'':6} before {outcome['previous']}, {end}")
