"""Chooses the deployment that a command works on.

1. `--state-dir DIR`: the stack in that folder.
2. FLASHSALE_* settings: the deployment they describe, as soon as one address that the command needs is among them. All
   addresses must then be settings: a command never takes some from the environment and others from a stack.
3. The stack in the project's `.flashsale/`, when it is up.

Otherwise the command ends with an error that names both ways.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ops.stack_file import Stack, StackError, StackFolder
from runtime.process.errors import OperatorError
from runtime.process.settings import PREFIX, Settings, file_variable, load_settings, overrule

# `flashsale up` replaces these settings of its caller, so a caller that sets one means another deployment.
ADDRESSES: Final = frozenset(
    {
        "redis_url", "cache_url", "queue_url", "event_log_url", "catalogue_dsn", "shard_dsns", "token_keys_file",
        "staff_key_file", "link_url",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment. `environ` is for a process that works on it; `stack` is None unless it is a stack that is up."""

    settings: Settings
    environ: Mapping[str, str] = field(repr=False)
    is_stack: bool
    stack: Stack | None = None


def resolve(
    state_dir: Path | None, *, needs: Sequence[str], running: bool = True, environ: Mapping[str, str] | None = None
) -> Target:
    """The deployment. `needs` names settings, at least one of `ADDRESSES`; those that are no address do not choose.

    `running=False`: the keys of a stack that is down are enough. Raises StackError, SettingsError, OperatorError.
    """
    assert ADDRESSES & set(needs)
    environ = os.environ if environ is None else environ
    given = [name for name in needs if is_set(environ, name)]
    if state_dir is None and ADDRESSES & set(given):
        if missing := [name for name in needs if name not in given]:
            raise OperatorError(
                f"{_variables(given)} set, but {_variables(missing)} not: set all of them, or name a stack with --state-dir"
            )
        settings = load_settings(environ)
        if "shard_dsns" in needs:
            settings.require_all_shards()
        return Target(settings, environ, is_stack=False)
    folder = StackFolder.at(state_dir)
    stack = folder.read_stack()
    if stack is None and (running or not folder.token_keys.exists()):
        raise StackError(_nothing_there(folder, needs, running=running, chosen=state_dir is not None))
    return _stack_target(folder, stack, environ)


def is_set(environ: Mapping[str, str], name: str) -> bool:
    """Whether the environment gives this setting, itself or as a file."""
    by_file = file_variable(name)
    return _variable(name) in environ or (by_file is not None and by_file in environ)


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _variables(names: Sequence[str]) -> str:
    return f"{', '.join(map(_variable, names))} {'is' if len(names) == 1 else 'are'}"


def _nothing_there(folder: StackFolder, needs: Sequence[str], *, running: bool, chosen: bool) -> str:
    what = f"no stack is up in {folder.path}" if running else f"there are no keys in {folder.path}"
    start = "start one with `flashsale up --detach`" if running else "start a stack once with `flashsale up --detach`"
    if chosen:
        names = ", ".join(map(_variable, needs))
        return f"{what}: {start}, or leave out --state-dir and set {names} to work on another deployment"
    return f"{what}, and {_variables(needs)} not set: {start}, or set {'them' if len(needs) > 1 else 'it'}"


def _stack_target(folder: StackFolder, stack: Stack | None, environ: Mapping[str, str]) -> Target:
    keys = {"FLASHSALE_TOKEN_KEYS_FILE": str(folder.token_keys), "FLASHSALE_STAFF_KEY_FILE": str(folder.staff_key)}
    if stack is None:
        return Target(load_settings(overrule(environ, keys)), environ, is_stack=True)
    ours = overrule(environ, folder.settings_env(stack))
    services = {
        "FLASHSALE_LINK_URL": stack.backoffice_url,
        "FLASHSALE_EDGE_PUBLIC_URL": stack.edge_url,
        "FLASHSALE_ADMIN_EMAIL": stack.admin["email"],
        "FLASHSALE_ADMIN_PASSWORD": stack.admin["password"],
    }
    return Target(load_settings(overrule(ours, keys | services)), ours, is_stack=True, stack=stack)
