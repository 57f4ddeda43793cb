"""Commands that optional extras add to `flashsale`, by the entry point group `flashsale.commands`.

An entry point's name is the command's name; it refers to a function as typer takes it. A command's module is imported
when the command runs or the help lists it: a broken extra does not stop any other command.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, Final

import typer
from typer.core import TyperGroup

from runtime.process.errors import OperatorError

GROUP: Final = "flashsale.commands"


class ExtensionError(OperatorError):
    """An installed extra cannot be imported."""


class Commands(TyperGroup):
    """The commands of `ops`, then those of installed extras."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of the help."""
        own = super().list_commands(ctx)
        return own + sorted(name for name in _entries() if name not in own and _function(name) is not None)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, None when there is none. Raises ExtensionError."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or (function := _function(cmd_name)) is None:
            return own
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name)(function)
        return typer.main.get_command(single)


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _function(name: str) -> Callable[..., None] | None:
    """The function of a command; None when no extra has it, or a package that its extra needs is not installed."""
    entry = _entries().get(name)
    if entry is None:
        return None
    try:
        function: Callable[..., None] = entry.load()
    except ModuleNotFoundError as error:
        if error.name is not None and find_spec(error.name.partition(".")[0]) is None:
            return None
        raise ExtensionError(_broken(entry, error)) from error
    except Exception as error:  # whatever its modules do when they are imported
        raise ExtensionError(_broken(entry, error)) from error
    return function


def _broken(entry: EntryPoint, error: Exception) -> str:
    return (
        f"the command {entry.name} cannot be loaded from {entry.value}: {type(error).__name__}: {error}; "
        "reinstall the package that provides it"
    )
