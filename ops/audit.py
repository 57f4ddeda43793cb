"""Entries of the audit log for work of operators that no transaction holds, such as files that were replaced.

The entry with the outcome `begun` is committed before the work, the one with `done` after it. A database that is away
does not stop the work, since a leaked key must be revoked at once: the command says that there is no entry.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from pydantic import SecretStr

from runtime.audit import BEGUN, DONE, Action, act_as, operator_act, record
from runtime.postgres.connection import BoundedConnection
from runtime.postgres.pool import POSTGRES_CONNECT_S

FAILED: Final = "failed"
RECORD_S_MAX: Final = 10.0


@contextmanager
def recorded(catalogue_dsn: SecretStr | None, action: Action, object_: str) -> Iterator[dict[str, Any]]:
    """Record the work of this block. The caller puts members of the last entry into the result."""
    _record(catalogue_dsn, action, object_, None, BEGUN)
    after: dict[str, Any] = {}
    try:
        yield after
    except BaseException:
        _record(catalogue_dsn, action, object_, after, FAILED)
        raise
    _record(catalogue_dsn, action, object_, after, DONE)


def _record(
    catalogue_dsn: SecretStr | None, action: Action, object_: str, after: Mapping[str, Any] | None, outcome: str
) -> None:
    if catalogue_dsn is None:
        if outcome == BEGUN:
            _say(f"{action} is not recorded in the audit log: FLASHSALE_CATALOGUE_DSN is not set")
        return
    try:
        asyncio.run(_write(catalogue_dsn, action, object_, after, outcome))
    except (psycopg.Error, OSError, TimeoutError) as error:
        _say(f"{action} ({outcome}) is not recorded in the audit log: {type(error).__name__}")


async def _write(
    catalogue_dsn: SecretStr, action: Action, object_: str, after: Mapping[str, Any] | None, outcome: str
) -> None:
    async with asyncio.timeout(RECORD_S_MAX):
        connection = await BoundedConnection.connect(
            catalogue_dsn.get_secret_value(), connect_timeout=POSTGRES_CONNECT_S
        )
        async with connection:
            with act_as(operator_act()):
                await record(connection, action, object_, after=after or None, outcome=outcome)


def _say(text: str) -> None:
    sys.stderr.write(f"flashsale: {text}\n")
