"""Dead letters in PostgreSQL.

Tables of the catalogue: `dead_letters`, `dead_letter_counts`, `replayed_letters`.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import orjson
import psycopg
from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from runtime.audit import Action, object_name, record
from runtime.dead_letters.port import (
    PAGE_LETTERS_MAX,
    Claim,
    DeadLetter,
    DeadLettersFull,
    DeadLettersUnavailable,
    NewLetter,
)
from runtime.postgres.sql import load_sql
from runtime.queue.port import Failure, FailureKind

STATEMENT_S_MAX = 5

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

_SQL = load_sql("runtime.dead_letters", "dead_letters.sql")
_ID = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_BIGINT_MAX = (1 << 63) - 1
_ADD_TRIES = 3  # two consumers may add the same letter at once: one of them finds it with the next try


class PostgresDeadLetters:
    """See `runtime.dead_letters.port.DeadLetters`."""

    def __init__(self, pool: Pool, *, letters_max: int, owns_pool: bool = False) -> None:
        """`pool` is the catalogue's. `letters_max` bounds the letters of each queue.

        With `owns_pool` the pool is opened at the first use and closed by `close`.
        """
        self._pool = pool
        self._letters_max = letters_max
        self._owns_pool = owns_pool

    async def add(self, letter: NewLetter) -> str:
        """One statement. Two concurrent additions of one letter meet in its unique identity."""
        values = {
            "identity": letter.identity,
            "queue": letter.queue,
            "message_id": _text(letter.message_id),
            "body": letter.body,
            "headers": orjson.dumps(dict(letter.headers)).decode(),
            "kind": letter.kind.value,
            "reason": _text(letter.short_reason),
            "attempts": letter.attempts,
            "replayable": letter.replayable,
            "first_seen_ms": letter.first_seen_ms,
            "history": orjson.dumps([[f.at_ms, f.kind.value, f.reason] for f in letter.history]).decode(),
            "letters_max": self._letters_max,
        }
        for left in reversed(range(_ADD_TRIES)):
            try:
                rows = await self._run("add_letter", values)
            except DeadLettersUnavailable as error:
                if left and isinstance(error.__cause__, UniqueViolation):
                    continue
                raise
            if not rows:
                raise DeadLettersFull(letter.queue)
            return str(rows[0][0])
        raise AssertionError("unreachable: the last try returns or raises")

    async def list(
        self, queue: str | None, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[DeadLetter], str | None]:
        """A page by keyset: it costs the same however many letters come before it."""
        assert 1 <= limit <= PAGE_LETTERS_MAX
        after = 0 if cursor is None else _parse_id(cursor)
        if after is None:
            raise ValueError("not the id of a dead letter")
        if queue is not None and "\0" in queue:
            return (
                [],
                None,
            )  # PostgreSQL refuses NUL as an error, and a caller would take that for a fault of the server
        # One more than asked for shows whether there is a next page.
        values = {"after": after, "rows_max": limit + 1, "queue": queue}
        rows = await self._run("list_letters" if queue is None else "list_letters_of_queue", values)
        letters = [_letter(row) for row in rows[:limit]]
        return letters, letters[-1].id if len(rows) > limit else None

    async def get(self, letter_id: str) -> DeadLetter | None:
        """One letter by its primary key."""
        rows = await self._run_by_id("get_letter", letter_id)
        return _letter(rows[0]) if rows else None

    async def delete(self, letter_id: str) -> bool:
        """Remove for good."""
        number = _parse_id(letter_id)
        if number is None:
            return False
        async with self._transaction() as connection:
            await connection.execute(_SQL["lock_count"], {"id": number})
            gone = await (await connection.execute(_SQL["delete_letter"], {"id": number})).fetchone()
            if gone is None:
                return False
            await _record(connection, Action.DEAD_LETTER_DELETE, gone)
            return True

    async def count(self) -> Mapping[str, int]:
        """The kept counts: a row per queue."""
        return dict(await self._run("count_letters", {}))

    async def claim(self, letter_id: str, *, lease_ms: int) -> Claim | None:
        """Compare-and-set on the row."""
        token = uuid4()
        rows = await self._run_by_id(
            "claim_letter", letter_id, {"claim": token, "lease": timedelta(milliseconds=lease_ms)}
        )
        return Claim(_letter(rows[0]), token) if rows else None

    async def release(self, claim: Claim) -> None:
        """Give the claim back."""
        async with self._transaction() as connection:
            await connection.execute(_SQL["release_letter"], {"id": int(claim.letter.id), "claim": claim.token})

    async def finish(self, claim: Claim) -> None:
        """Remove and remember, in one transaction."""
        values = {"id": int(claim.letter.id), "claim": claim.token}
        async with self._transaction() as connection:
            await connection.execute(_SQL["lock_count"], values)
            gone = await (await connection.execute(_SQL["finish_replay"], values)).fetchone()
            if gone is not None:
                await _record(connection, Action.DEAD_LETTER_REPLAY, gone)

    async def was_replayed(self, letter_id: str) -> bool:
        """Look the id up among those remembered."""
        rows = await self._run_by_id("was_replayed", letter_id)
        return bool(rows and rows[0][0])

    async def close(self) -> None:
        """Close the pool if it is this object's own."""
        if self._owns_pool:
            await self._pool.close()

    async def _run_by_id(
        self, block: str, letter_id: str, values: Mapping[str, Any] | None = None
    ) -> builtins.list[TupleRow]:
        number = _parse_id(letter_id)
        return [] if number is None else await self._run(block, {"id": number, **(values or {})})

    async def _run(self, block: str, values: Mapping[str, Any]) -> builtins.list[TupleRow]:
        async with self._transaction() as connection:
            return await (await connection.execute(_SQL[block], values)).fetchall()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A bounded transaction; the client's errors as the port's."""
        try:
            if self._owns_pool:
                await self._pool.open()
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_S_MAX}s'")
                yield connection
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise DeadLettersUnavailable(str(error).strip() or type(error).__name__) from error


async def _record(connection: AsyncConnection[TupleRow], action: Action, letter: TupleRow) -> None:
    # Without the reason: mail servers repeat the address in it.
    number, queue, message_id, kind = letter
    before = {"queue": queue, "message_id": message_id, "kind": kind}
    await record(connection, action, object_name("dead_letter", str(number)), before=before)


def _parse_id(letter_id: str) -> int | None:
    """The number of an id, None for a text that cannot be one: it may come from a URL."""
    if not _ID.fullmatch(letter_id):
        return None
    number = int(letter_id)
    return number if number <= _BIGINT_MAX else None


def _text(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _letter(row: TupleRow) -> DeadLetter:
    number, queue, message_id, body, headers, kind, reason, attempts, replayable, first_seen, died, history = row
    return DeadLetter(
        id=str(number),
        queue=queue,
        message_id=message_id,
        body=bytes(body),
        headers=headers,
        kind=FailureKind(kind),
        reason=reason,
        attempts=attempts,
        replayable=replayable,
        first_seen_ms=int(first_seen),
        died_ms=int(died),
        history=tuple(Failure(at_ms, FailureKind(word), words) for at_ms, word, words in history),
    )
