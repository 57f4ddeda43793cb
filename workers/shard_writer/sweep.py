"""Brings a shard's quotas and the catalogue's grants together again after crashes between the two.

Heals: a grant that was made and not adopted, a release that did not reach the catalogue, and units that were granted
and not used. Idle units are given up only when nothing moved between two looks, so that a writer between its
catalogue transaction and its own rarely loses them; if it does, it asks again.

A SKU with halves that do not fit each other (damage: a grant below the units sold, or units given up that the ledger
does not have) is logged as an error and left as it is; the others are healed.

Looks at the sales that may move: those that ended less than a day ago or not yet, and those that the round before
found unsettled. Replayed dead letters move older sales as well, hence the look at all sales once a minute and after a
start. So the cost of a round follows the sales of the day, not all sales ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from runtime.postgres import columns
from runtime.postgres.sql import load_sql
from runtime.process.service import Service
from workers.consuming import REFUSED, reason_of
from workers.shard_writer import metrics
from workers.shard_writer.grants import Grants
from workers.shard_writer.plan import Grant, Quota, SkuKey

SWEEP_S = 2.0
EVERYTHING_EVERY = 30  # rounds: once a minute

_SQL = load_sql("workers.shard_writer", "orders.sql")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Look:
    total: int
    grant_seq: int
    granted: int
    seq: int
    sold: int

    @property
    def is_unsettled(self) -> bool:
        """Whether there may be something to heal, or damage to show."""
        return self.grant_seq > self.seq or self.total > self.granted or self.granted > self.sold

    @property
    def is_damaged(self) -> bool:
        """Whether the newest grant cannot be taken over: more was sold."""
        return self.grant_seq > self.seq and self.total < self.sold


class Sweep:
    """The sweep of one shard."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
        grants: Grants,
        *,
        shard: int,
        every_s: float = SWEEP_S,
    ) -> None:
        """`pool` is the shard's, `grants` are the same shard's."""
        self._pool = pool
        self._grants = grants
        self._shard = shard
        self._every_s = every_s
        self._before: dict[SkuKey, _Look] = {}  # the unsettled SKUs of the round before
        self._damaged: set[SkuKey] = set()  # in the round before
        self._rounds = 0

    async def run(self, service: Service) -> None:
        """Sweep until the service stops; a database that is away is tried again in the next round."""
        condition = f"sweep {self._shard}"
        with service.background.rounds(condition) as beat:
            while not await service.tick(self._every_s):
                beat()
                try:
                    await self.sweep()
                except (psycopg.Error, OSError, TimeoutError) as error:
                    service.ready(condition, ok=False, detail=type(error).__name__)
                    log.warning("sweep failed", shard=self._shard, error=type(error).__name__)
                else:
                    service.ready(condition, ok=True)

    async def sweep(self) -> int:
        """One round; how many grants were corrected."""
        everything = self._rounds % EVERYTHING_EVERY == 0
        unsettled = {UUID(int=sale_id) for sale_id, _ in self._before}
        grants = await (self._grants.read() if everything else self._grants.read_live(unsettled))
        if not (everything or unsettled or grants):
            # No sale of the day and nothing left of earlier ones: the shard has nothing to compare.
            self._rounds += 1
            self._show({})
            return 0
        async with self._pool.connection() as connection:
            if everything:
                quotas = await _read_quotas(connection, "read_quotas", {})
            else:
                sale_ids = columns.uuids(list(unsettled | {UUID(int=sale_id) for sale_id, _ in grants}))
                quotas = await _read_quotas(connection, "read_quotas_of", {"sale_ids": sale_ids})
            looks = {key: _look(grants.get(key), quotas.get(key)) for key in grants | quotas}
            stable = {key: look for key, look in looks.items() if self._before.get(key) == look}
            damaged = {key: "grant below the units sold" for key, look in stable.items() if look.is_damaged}
            unknown = {key: look for key, look in stable.items() if look.grant_seq > look.seq and not look.is_damaged}
            if unknown:
                await _adopt(connection, unknown)
            # The sequence must agree: a writer may have raised the grant since it was read.
            lower = {
                key: Grant(look.granted, look.seq)
                for key, look in looks.items()
                if look.grant_seq == look.seq and look.total > look.granted
            }
            idle = {key: look for key, look in stable.items() if look.granted > look.sold}
            if idle:
                lower |= await _give_up(connection, idle)
        # Before the catalogue is lowered: after a failure, these are looked at again, whatever their age.
        self._before = {key: look for key, look in looks.items() if look.is_unsettled}
        self._rounds += 1
        refused = await self._lower(lower)
        self._show(damaged | refused)
        corrected = len(unknown) + len(lower) - len(refused)
        metrics.GRANTS_SWEPT.labels(self._shard).inc(corrected)
        return corrected

    async def _lower(self, lower: dict[SkuKey, Grant]) -> dict[SkuKey, str]:
        """Lower grants; returns the SKUs that the catalogue refuses, each with the reason. They are found by halves."""
        if not lower:
            return {}
        try:
            await self._grants.lower_to(lower)
        except REFUSED as error:
            if len(lower) == 1:
                return dict.fromkeys(lower, reason_of(error))
            grants, middle = list(lower.items()), len(lower) // 2
            return await self._lower(dict(grants[:middle])) | await self._lower(dict(grants[middle:]))
        return {}

    def _show(self, damaged: dict[SkuKey, str]) -> None:
        """Log each damaged SKU when it is found, and count them."""
        for sale_id, sku in damaged.keys() - self._damaged:
            reason = damaged[sale_id, sku]
            log.error("guard is damaged", shard=self._shard, sale_id=str(UUID(int=sale_id)), sku=sku, reason=reason)
        self._damaged = set(damaged)
        metrics.GUARD_DAMAGED.labels(self._shard).set(len(damaged))


def _look(grant: Grant | None, quota: Quota | None) -> _Look:
    """Either may be missing: a crash left a grant without a quota, or nothing was granted yet."""
    total, grant_seq = (grant.total, grant.seq) if grant else (0, 0)
    return _Look(total, grant_seq, quota.granted, quota.seq, quota.sold) if quota else _Look(total, grant_seq, 0, 0, 0)


async def _read_quotas(
    connection: AsyncConnection[TupleRow], block: str, values: dict[str, columns.Column]
) -> dict[SkuKey, Quota]:
    cursor = await connection.execute(_SQL[block], values)
    return {
        (sale_id.int, sku): Quota(granted, seq, sold) for sale_id, sku, granted, seq, sold in await cursor.fetchall()
    }


async def _adopt(connection: AsyncConnection[TupleRow], unknown: dict[SkuKey, _Look]) -> None:
    values = _keys(unknown) | {
        "totals": columns.integers([look.total for look in unknown.values()]),
        "seqs": columns.bigints([look.grant_seq for look in unknown.values()]),
    }
    await connection.execute(_SQL["make_quotas"], _keys(unknown))
    await connection.execute(_SQL["adopt_grants"], values)


async def _give_up(connection: AsyncConnection[TupleRow], idle: dict[SkuKey, _Look]) -> dict[SkuKey, Grant]:
    values = _keys(idle) | {
        "seqs": columns.bigints([look.seq for look in idle.values()]),
        "sold": columns.integers([look.sold for look in idle.values()]),
        "granted": columns.integers([look.granted for look in idle.values()]),
    }
    cursor = await connection.execute(_SQL["give_up_idle"], values)
    # Committed before the catalogue is told: in the other order, the shard could sell units that it gave up.
    given_up = {(sale_id.int, sku): Grant(granted, seq) for sale_id, sku, granted, seq in await cursor.fetchall()}
    await connection.commit()
    return given_up


def _keys(looks: dict[SkuKey, Any]) -> dict[str, Any]:
    return {
        "sale_ids": columns.uuids([UUID(int=sale_id) for sale_id, _ in looks]),
        "skus": columns.texts([sku for _, sku in looks]),
    }
