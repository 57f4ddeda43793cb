"""`rotate-keys`: new keys for access tokens, without downtime."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ops.commands.options import AsJson, StateDir, print_json
from ops.key_rotation import RotationWaits, buyer_kind, plan, rotate, staff_kind
from ops.target import resolve
from runtime.process.errors import OperatorError


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
    state_dir: StateDir = None,
) -> None:
    """Give buyers' and staff tokens new keys while everything runs. May be repeated, and goes on where it was stopped."""
    files = {"token_keys_file": token_keys, "staff_key_file": staff_key}
    needs = [name for name, path in files.items() if path is None]
    target = resolve(state_dir, needs=needs, running=False) if needs else None
    for name in needs:
        assert target is not None
        files[name] = getattr(target.settings, name)
    kinds = (buyer_kind(_existing(files["token_keys_file"])), staff_kind(_existing(files["staff_key_file"])))
    is_stack = target is not None and target.is_stack and len(needs) == len(files)
    processes = dict(target.stack.metrics) if is_stack and target is not None and target.stack is not None else {}
    for text in process or ():
        name, _, url = text.partition("=")
        if not url:
            raise typer.BadParameter(f"{text}: not NAME=URL", param_hint="--process")
        processes[name] = url.rstrip("/")
    if not (is_stack or processes or dry_run):
        raise typer.BadParameter(
            "name every edge and every backoffice: a key may sign only when all of them know it", param_hint="--process"
        )
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


def _existing(path: Path | None) -> Path:
    assert path is not None
    if not path.exists():
        raise OperatorError(
            f"there is no key file {path}: create it, or start a stack once with `flashsale up --detach`"
        )
    return path


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
