"""The catalogue's half of the guard, as one shard uses it: raise its grants on demand, lower them after releases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from runtime.postgres import columns
from runtime.postgres.pool import single_statements
from runtime.postgres.sql import load_sql
from workers.shard_writer.plan import Grant, SkuKey

_SQL = load_sql("workers.shard_writer", "grants.sql")
# Transactions here are two statements long: a longer wait is a wait behind a fault.
_BOUNDS = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '5s'"


class Grants:
    """Grants of one shard.

    Every method is one transaction; psycopg errors mean that nothing is known of its outcome.
    """

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], *, shard: int) -> None:
        """`pool` is the catalogue's."""
        self._pool = pool
        self._shard = shard

    async def raise_to(self, needs: Mapping[SkuKey, int]) -> dict[SkuKey, Grant]:
        """Ask for totals. The answer may be lower than asked for, and has nothing for SKUs that the ledger lacks."""
        keys = list(needs)
        wanted = columns.integers([needs[key] for key in keys])
        rows = await self._change("raise_grants", keys, {"needs": wanted})
        return {(sale_id.int, sku): Grant(total, seq) for sale_id, sku, total, seq in rows}

    async def lower_to(self, given_up: Mapping[SkuKey, Grant]) -> None:
        """Lower grants to the units that the shard keeps; a grant with a newer number stays as it is."""
        keys = list(given_up)
        keeps = {
            "granted": columns.integers([given_up[key].total for key in keys]),
            "seqs": columns.bigints([given_up[key].seq for key in keys]),
        }
        await self._change("lower_grants", keys, keeps)

    async def read(self) -> dict[SkuKey, Grant]:
        """All grants of the shard: one for every SKU that it ever sold."""
        return await self._read("read_grants", {})

    async def read_live(self, sale_ids: Collection[UUID]) -> dict[SkuKey, Grant]:
        """The shard's grants of sales that ended less than a day ago or not yet, and of the named ones."""
        return await self._read("read_live_grants", {"sale_ids": columns.uuids(list(sale_ids))})

    async def _read(self, block: str, values: dict[str, Any]) -> dict[SkuKey, Grant]:
        async with single_statements(self._pool) as connection:
            cursor = await connection.execute(_SQL[block], {"shard": self._shard} | values)
            return {(sale_id.int, sku): Grant(total, seq) for sale_id, sku, total, seq in await cursor.fetchall()}

    async def _change(self, block: str, keys: list[SkuKey], more: dict[str, Any]) -> list[TupleRow]:
        values = {
            "sale_ids": columns.uuids([UUID(int=sale_id) for sale_id, _ in keys]),
            "skus": columns.texts([sku for _, sku in keys]),
            "shard": self._shard,
            **more,
        }
        async with self._pool.connection() as connection:
            # network op: one round trip, the commit included
            async with connection.pipeline(), connection.transaction():
                for bound in _BOUNDS.split("; "):
                    await connection.execute(bound)
                await connection.execute(_SQL["lock_ledger"], values)
                cursor = await connection.execute(_SQL[block], values)
            return await cursor.fetchall() if block == "raise_grants" else []
