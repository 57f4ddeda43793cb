"""Plans the transaction of a batch of order entries in a shard. Pure: performs no I/O, decides everything.

`storing` is a generator of effects: it yields one effect after the other, each complete in itself, and is sent the
answer of those that read. `workers.shard_writer.store` executes them in one transaction and decides nothing. The
effects of a batch, in their order:

    ReadShard          enter the buckets of its orders, lock the quotas of its SKUs, read what is stored of its orders,
                       and the epochs of rebuilt sales
    ReadDeadLettered   only for orders that come after a rebuild of their sale: did it count their place?
    RaiseGrants        only when more is needed than is granted: ask the catalogue
    AdoptGrants        take over newer grants
    Write              quotas, rows, transitions, outbox; when the database refuses some order, once more by halves

An order counts against its shard's quota exactly as long as its stored row is reserved or paid:

    no row, reserved or paid arrives      charge: sold + n, or wait when nothing is granted
    no row, cancelled or expired arrives  never charges
    charged row, final state arrives      release: sold - n, granted - n
    row at this version or newer          nothing, but the version's transition if it is the first time it is seen,
                                          and its place if the version was stored from another one
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from domain import ids
from domain.headers import MalformedHeaders, decode_headers
from domain.messages import SequencedEntry
from domain.orders import MalformedEntry, OrderEntry, OrderStatus, decode_entry
from domain.topology import Topology
from runtime.postgres.columns import BIGINT_MAX
from runtime.queue import FailureKind

# The batch's dictionaries are keyed by integers: the hash of a UUID is Python code and would cost more than the
# planning.
SkuKey = tuple[int, str]  # sale id as an integer, SKU
_TIME_MS_MAX = 253_402_300_800_000  # the year 10000
_HOLDING = frozenset({OrderStatus.RESERVED, OrderStatus.PAID})


class PoisonEntry(ValueError):
    """An entry that no retry can store; the message names the fault."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        """`reason` is for people."""
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Version:
    """One entry, decoded, with its source: its place in its lane, its bytes, its encoded headers."""

    entry: OrderEntry
    source: SequencedEntry

    @property
    def headers(self) -> dict[str, str]:
        """The transport headers; malformed ones are dropped, because an order is complete without them."""
        if not self.source.headers:
            return {}
        try:
            return decode_headers(self.source.headers)
        except MalformedHeaders:
            return {}


@dataclass(slots=True)
class Incoming:
    """All versions of one order in a batch: the unit that is stored, waits, or is poison."""

    order_id: UUID
    newest: OrderEntry
    versions: list[Version]

    @property
    def units(self) -> list[tuple[SkuKey, int]]:
        """Units per line."""
        entry = self.newest
        sale = entry.sale_id.int
        return [((sale, line.sku), line.quantity) for line in entry.lines]

    @property
    def places(self) -> list[tuple[int, int]]:
        """`(lane, lane_seq)` of each version."""
        return [(version.source.lane, version.source.lane_seq) for version in self.versions]


@dataclass(slots=True)
class Quota:
    """The shard's half of the guard for one SKU: `0 <= sold <= granted`, by grant number `seq`."""

    granted: int
    seq: int
    sold: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The units of one SKU that the shard may sell in total, by grant number `seq`."""

    total: int
    seq: int


@dataclass(frozen=True, slots=True)
class Stored:
    """An order in the shard: its row's version, whether it is charged, and the versions seen so far."""

    version: int
    charged: bool
    versions: frozenset[int]


@dataclass(slots=True)
class Change:
    """The change of one SKU's quota by a batch; `give_back` units leave the grant."""

    sold: int = 0
    give_back: int = 0


@dataclass(slots=True)
class Plan:
    """Writes of a batch.

    `rows` take effect in `orders`, `transitions` are seen for the first time, `waiting` found no grant. `repeats` are
    versions that were seen before: a redelivery, or the same version at another place of its lane.
    """

    rows: list[OrderEntry] = field(default_factory=list)
    transitions: list[Version] = field(default_factory=list)
    repeats: list[Version] = field(default_factory=list)
    waiting: list[Incoming] = field(default_factory=list)
    changes: dict[SkuKey, Change] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardState:
    """The shard's rows for a batch, under lock.

    `epochs`: by sale as an integer, before which nothing new is charged. `closed`: buckets of the batch that this shard
    must not write now, each with the shard to ask, or None if it is to be asked again itself.
    """

    quotas: dict[SkuKey, Quota]
    stored: dict[int, Stored]
    epochs: dict[int, int]
    closed: Mapping[int, int | None] = field(default_factory=dict)


@dataclass(slots=True)
class StoreResult:
    """Result of a batch. `final` are orders of the batch that are stored in a final state.

    `elsewhere` are orders of closed buckets, each with the shard to ask (`ShardState.closed`). They were not written.
    """

    stored_count: int = 0
    repeated_count: int = 0
    event_count: int = 0
    waiting: list[Incoming] = field(default_factory=list)
    poison: list[tuple[Incoming, str]] = field(default_factory=list)
    elsewhere: list[tuple[Incoming, int | None]] = field(default_factory=list)
    final: list[UUID] = field(default_factory=list)
    given_up: dict[SkuKey, Grant] = field(default_factory=dict)

    def add(self, other: StoreResult) -> None:
        """Add the result of a later batch."""
        self.stored_count += other.stored_count
        self.repeated_count += other.repeated_count
        self.event_count += other.event_count
        self.waiting += other.waiting
        self.poison += other.poison
        self.elsewhere += other.elsewhere
        self.final += other.final
        self.given_up |= other.given_up


@dataclass(frozen=True, slots=True)
class ReadShard:
    """Enter the buckets of these orders, lock the quotas of these SKUs, in this order, and read. Answer: ShardState."""

    skus: Sequence[SkuKey]
    orders: Sequence[UUID]


@dataclass(frozen=True, slots=True)
class ReadDeadLettered:
    """Which of these places, `(lane, lane_seq)`, are noted as dead letters. Answer: a set of places."""

    places: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class RaiseGrants:
    """Ask the catalogue for these totals. Answer: the grants of the SKUs that its ledger has, perhaps lower ones."""

    totals: Mapping[SkuKey, int]


@dataclass(frozen=True, slots=True)
class AdoptGrants:
    """Take over these grants. No answer."""

    grants: Mapping[SkuKey, Grant]


@dataclass(frozen=True, slots=True)
class Write:
    """Write a plan. With `savepoint` a refusal is answered by its reason and undone, None when the plan is written.

    Without one, a refusal ends the transaction: the caller begins again with `storing(orders, bisect=True)`.
    """

    plan: Plan
    savepoint: bool


Effect = ReadShard | ReadDeadLettered | RaiseGrants | AdoptGrants | Write
Effects = Generator[Effect, Any, StoreResult]


def storing(orders: Sequence[Incoming], *, bisect: bool) -> Effects:
    """The effects that store a batch, and its result. `bisect`: the database refused the batch as a whole before."""
    state: ShardState = yield ReadShard(sku_keys(orders), [order.order_id for order in orders])
    quotas, stored = state.quotas, state.stored
    result = StoreResult()
    if state.closed:
        result.elsewhere = [(o, state.closed[b]) for o in orders if (b := ids.bucket_of(o.order_id)) in state.closed]
        orders = [order for order in orders if ids.bucket_of(order.order_id) not in state.closed]
    late = _late(orders, state)
    if late:
        counted: Collection[tuple[int, int]] = yield ReadDeadLettered(
            [place for order in late for place in order.places]
        )
        orders = _reject_uncounted(orders, late, counted)
    totals = needs(orders, stored, quotas)
    if totals:
        grants: Mapping[SkuKey, Grant] = yield RaiseGrants(totals)
        # A grant below what is sold is a damaged guard: its orders wait, and hold up no others.
        newer = {
            key: grant
            for key, grant in grants.items()
            if grant.seq > quotas[key].seq and grant.total >= quotas[key].sold
        }
        if newer:
            yield AdoptGrants(newer)
            for key, grant in newer.items():
                quotas[key].granted, quotas[key].seq = grant.total, grant.seq
    reduced: set[SkuKey] = set()
    if bisect:
        yield from _by_halves(orders, state, result, reduced)
    else:
        plan = make_plan(orders, stored, quotas)
        yield Write(plan, savepoint=False)
        _account(plan, quotas, result, reduced)
    # A grant that was not used up, for poison or by a release, is left to the sweep.
    result.given_up = {key: Grant(quotas[key].granted, quotas[key].seq) for key in reduced}
    _count_final(orders, stored, result)
    return result


def _late(orders: Sequence[Incoming], state: ShardState) -> list[Incoming]:
    """New orders that would hold units, of an epoch before the last rebuild of their sale."""
    if not state.epochs:
        return []
    return [
        order
        for order in orders
        if order.newest.epoch < state.epochs.get(order.newest.sale_id.int, 0)
        and order.order_id.int not in state.stored
        and holds_units(order.newest)
    ]


def _reject_uncounted(
    orders: Sequence[Incoming], late: Sequence[Incoming], counted: Collection[tuple[int, int]]
) -> list[Incoming]:
    """The orders, the late ones as rejected: the rebuild did not count them, so they may not hold a unit.

    The rebuild counted dead letters, so a replayed one may still be charged.
    """
    refused = {order.order_id.int for order in late if not any(place in counted for place in order.places)}
    return [_rejected(order) if order.order_id.int in refused else order for order in orders]


def _rejected(order: Incoming) -> Incoming:
    versions = [replace(v, entry=replace(v.entry, status=OrderStatus.REJECTED)) for v in order.versions]
    return Incoming(order.order_id, replace(order.newest, status=OrderStatus.REJECTED), versions)


def _by_halves(
    orders: Sequence[Incoming], state: ShardState, result: StoreResult, reduced: set[SkuKey]
) -> Generator[Effect, Any, None]:
    """Bisect: halves that the database takes are written, single orders that it refuses are poison."""
    plan = make_plan(orders, state.stored, state.quotas)
    refusal: str | None = yield Write(plan, savepoint=True)
    if refusal is None:
        _account(plan, state.quotas, result, reduced)
    elif len(orders) == 1:
        result.poison.append((orders[0], refusal))
    else:
        middle = len(orders) // 2
        yield from _by_halves(orders[:middle], state, result, reduced)
        yield from _by_halves(orders[middle:], state, result, reduced)


def _account(plan: Plan, quotas: Mapping[SkuKey, Quota], result: StoreResult, reduced: set[SkuKey]) -> None:
    """Count a plan that was written, and move the quotas for the plans after it."""
    apply_changes(quotas, plan.changes)
    reduced.update(key for key, change in plan.changes.items() if change.give_back)
    result.stored_count += len(plan.rows)
    result.event_count += len(plan.transitions)
    result.waiting += plan.waiting


def _count_final(orders: Sequence[Incoming], stored: Mapping[int, Stored], result: StoreResult) -> None:
    """Final states that are stored by now, also those that a redelivery repeats: their Redis value gets its TTL."""
    left_out = {order.order_id.int for order in (*result.waiting, *(order for order, _ in result.poison))}
    for order in orders:
        if order.order_id.int in left_out:
            continue
        before = stored.get(order.order_id.int)
        if before is not None and before.version >= order.newest.version:
            result.repeated_count += 1
        if order.newest.status.is_final:
            result.final.append(order.order_id)


def read_entry(source: SequencedEntry, *, shard: int, topology: Topology) -> Version:
    """Decode an entry for this shard; PoisonEntry for an entry that this shard cannot store."""
    try:
        entry = decode_entry(source.entry)
    except MalformedEntry as error:
        raise PoisonEntry(FailureKind.MALFORMED, f"malformed entry: {error}") from error
    # Of a bucket that has moved, only the database knows whether it is here.
    bucket = ids.bucket_of(entry.order_id)
    if topology.buckets.owner(bucket) is None and topology.first_shard_of_bucket(bucket) != shard:
        raise PoisonEntry(FailureKind.UNROUTABLE, f"order of shard {topology.first_shard_of_bucket(bucket)}")
    if ids.lane_of(entry.order_id) != source.lane:
        raise PoisonEntry(FailureKind.UNROUTABLE, f"order of lane {ids.lane_of(entry.order_id)} in lane {source.lane}")
    # PostgreSQL's text has no NUL, and a statement that fails before any order is looked at could not be bisected.
    if any("\0" in text for text in (entry.idempotency_key, entry.currency, *(line.sku for line in entry.lines))):
        raise PoisonEntry(FailureKind.MALFORMED, "NUL in a text")
    if not entry.lines or entry.version < 1:
        raise PoisonEntry(FailureKind.MALFORMED, "no lines" if not entry.lines else "version 0")
    if source.lane_seq > BIGINT_MAX:  # a total cannot be: prices have 40 bits
        raise PoisonEntry(FailureKind.MALFORMED, "number out of range")
    if max(entry.reserved_at_ms, entry.expires_at_ms, entry.changed_at_ms) > _TIME_MS_MAX:
        raise PoisonEntry(FailureKind.MALFORMED, "time out of range")
    return Version(entry, source)


def group_by_order(versions: Iterable[Version]) -> list[Incoming]:
    """Entries gathered per order, in order of first arrival."""
    orders: dict[int, Incoming] = {}
    for version in versions:
        entry = version.entry
        order = orders.get(entry.order_id.int)
        if order is None:
            orders[entry.order_id.int] = Incoming(entry.order_id, entry, [version])
            continue
        order.versions.append(version)
        if entry.version > order.newest.version:
            order.newest = entry
    return list(orders.values())


def sku_keys(orders: Iterable[Incoming]) -> list[SkuKey]:
    """Every SKU that the orders touch, sorted: the order in which quota rows are locked."""
    return sorted({key for order in orders for key, _ in order.units})


def needs(
    orders: Sequence[Incoming], stored: Mapping[int, Stored], quotas: Mapping[SkuKey, Quota]
) -> dict[SkuKey, int]:
    """Totals to ask the catalogue for: `sold` after this batch, where that is more than is granted."""
    after: dict[SkuKey, int] = {}
    for order in orders:
        before = stored.get(order.order_id.int)
        sign = _charges(order, before) - _releases(order, before)
        if sign:
            for key, units in order.units:
                after[key] = after.get(key, 0) + sign * units
    totals = {key: quotas[key].sold + units for key, units in after.items()}
    return {key: total for key, total in sorted(totals.items()) if total > quotas[key].granted}


def make_plan(orders: Sequence[Incoming], stored: Mapping[int, Stored], quotas: Mapping[SkuKey, Quota]) -> Plan:
    """The writes of these orders on top of `stored`; the quotas stay as they are (`apply_changes` moves them).

    Units that the batch releases serve its charges first; the rest goes back with the grant.
    """
    plan = Plan()
    changes = plan.changes
    released: dict[SkuKey, int] = {}
    for order in orders:
        if stored and _releases(order, stored.get(order.order_id.int)):
            for key, units in order.units:
                changes.setdefault(key, Change()).sold -= units
                released[key] = released.get(key, 0) + units
    for order in orders:
        before = stored.get(order.order_id.int)
        if _charges(order, before) and not _charge(order, quotas, changes):
            plan.waiting.append(order)
            continue
        if before is None or order.newest.version > before.version:
            plan.rows.append(order.newest)
        seen = set() if before is None else set(before.versions)
        for version in order.versions:
            if version.entry.version in seen:
                plan.repeats.append(version)
            else:
                seen.add(version.entry.version)
                plan.transitions.append(version)
    for key, units in released.items():
        quota = quotas[key]
        left_over = quota.granted - (quota.sold + changes[key].sold)
        changes[key].give_back = max(0, min(units, left_over))
    plan.rows.sort(key=lambda entry: entry.order_id.int)  # rows are locked in one order: two writers cannot deadlock
    return plan


def apply_changes(quotas: Mapping[SkuKey, Quota], changes: Mapping[SkuKey, Change]) -> None:
    """Move the quotas by written changes."""
    for key, change in changes.items():
        quotas[key].sold += change.sold
        quotas[key].granted -= change.give_back


def holds_units(entry: OrderEntry) -> bool:
    """Whether a row at this version counts against the quota: the `charged` column."""
    return entry.status in _HOLDING


def _charges(order: Incoming, before: Stored | None) -> bool:
    if before is None:
        return holds_units(order.newest)
    return not before.charged and order.newest.version > before.version and holds_units(order.newest)


def _releases(order: Incoming, before: Stored | None) -> bool:
    return (
        before is not None
        and before.charged
        and order.newest.version > before.version
        and not holds_units(order.newest)
    )


def _charge(order: Incoming, quotas: Mapping[SkuKey, Quota], changes: dict[SkuKey, Change]) -> bool:
    """Take the units of every line, or of none."""
    taken: list[tuple[Change, int]] = []
    for key, units in order.units:
        change = changes.get(key)
        if change is None:
            change = changes[key] = Change()
        quota = quotas[key]
        if quota.sold + change.sold + units > quota.granted:
            for earlier, earlier_units in taken:
                earlier.sold -= earlier_units
            return False
        change.sold += units
        taken.append((change, units))
    return True
