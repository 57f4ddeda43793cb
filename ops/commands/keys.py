"""`rotate-keys`: replace the keys of access tokens, without downtime. `vapid-key`: make a key of web push."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr
from rich.console import Console

from ops.audit import recorded
from ops.commands.options import AsJson, StateDir, print_json
from ops.key_rotation import RotationWaits, buyer_kind, plan, rotate, staff_kind
from ops.target import is_set, resolve
from runtime.audit import Action, object_name
from runtime.process.errors import OperatorError
from runtime.process.settings import load_settings
from runtime.tokens.vapid import VapidKey, new_vapid_key

SERVICES: Final = ("edge", "backoffice")


def rotate_keys(
    retire: Annotated[
        bool, typer.Option("--retire", help="Revoke the old keys at once, because one leaked. Logs out all users.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; change nothing.")] = False,
    wait_s: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds to wait until all processes follow a step.")
    ] = 60.0,
    process: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=URL of a process that reads the keys, NAME begins with edge or backoffice; repeatable."
        ),
    ] = None,
    token_keys: Annotated[Path | None, typer.Option(help="File of buyers' keys, instead of the deployment's.")] = None,
    staff_key: Annotated[Path | None, typer.Option(help="File of staff keys, instead of the deployment's.")] = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Replace the keys of buyers' and staff tokens while all services run.

    Running it again after an interruption continues with the next step. Outside of a stack, name each edge and each
    backoffice with --process.
    """
    buyer_file, staff_file, processes, catalogue = _rings(token_keys, staff_key, state_dir)
    named = dict(map(_named_process, process or ()))
    # A process that is forgotten would refuse the tokens that are signed with the new key.
    if processes is None and not dry_run and not all(any(n.startswith(s) for n in named) for s in SERVICES):
        raise typer.BadParameter(
            "name every edge and every backoffice: a key may sign only when all of them know it", param_hint="--process"
        )
    processes = {**(processes or {}), **named}
    kinds = (buyer_kind(buyer_file), staff_kind(staff_file))
    if dry_run:
        _show({kind.name: plan(kind, retire=retire) for kind in kinds}, as_json=as_json)
        return
    outcomes: dict[str, Any] = {}
    try:
        with Console(stderr=True).status("Rotating keys") as status:  # shows nothing unless stderr is a terminal
            for kind in kinds:
                with recorded(catalogue, Action.KEYS_ROTATE, object_name("keys", kind.name)) as after:
                    outcome = rotate(kind, processes, retire=retire, wait_s_max=wait_s, say=status.update)
                    after |= {"active": outcome["active"], "previous": outcome["previous"], "retired": retire}
                outcomes[kind.name] = outcome
    except RotationWaits:
        _show(outcomes, as_json=as_json)  # the ring that was rotated before
        raise
    _show(outcomes, as_json=as_json)


def _named_process(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    address = urlsplit(url)
    if not name.startswith(SERVICES) or address.scheme not in ("http", "https") or not address.netloc:
        raise typer.BadParameter(
            f"{text}: not NAME=URL with a NAME that begins with edge or backoffice, and an http or https URL",
            param_hint="--process",
        )
    return name, url.rstrip("/")


def _rings(
    token_keys: Path | None, staff_key: Path | None, state_dir: Path | None
) -> tuple[Path, Path, dict[str, str] | None, SecretStr | None]:
    """Files of buyers' and of staff keys, the processes that read them, and the catalogue with the audit log.

    Processes are None when only the caller knows them, the catalogue when the deployment's is not known.
    """
    files = {"token_keys_file": token_keys, "staff_key_file": staff_key}
    processes = None
    catalogue = load_settings().catalogue_dsn if is_set(os.environ, "catalogue_dsn") else None
    if needs := [name for name, path in files.items() if path is None]:
        target = resolve(state_dir, needs=needs, running=False)
        files |= {name: getattr(target.settings, name) for name in needs}
        if target.is_stack:
            catalogue = target.settings.catalogue_dsn if target.stack is not None else None
        if target.is_stack and len(needs) == len(files):
            processes = dict(target.stack.metrics) if target.stack is not None else {}
    for path in files.values():
        assert path is not None
        if not path.exists():
            raise OperatorError(
                f"there is no key file {path}: create it, or start a stack once with `flashsale up --detach`"
            )
    buyer_file, staff_file = files.values()
    assert buyer_file is not None and staff_file is not None
    return buyer_file, staff_file, processes, catalogue


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


def vapid_key(as_json: AsJson = False) -> None:
    """Make a key of web push, and print it as settings. It is stored nowhere."""
    private = new_vapid_key()
    made = {"FLASHSALE_VAPID_KEY": private, "FLASHSALE_VAPID_PUBLIC_KEY": VapidKey.parse(private).public}
    if as_json:
        print_json(made)
    else:
        print("\n".join(f"{name}={value}" for name, value in made.items()))
