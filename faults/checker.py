"""Compares the clients' history with the stored data, invariant by invariant. Performs no I/O, repairs nothing.

Each finding names the broken invariant (docs/architecture.md):

    A  no unit sold twice, counters balance      D  each change published at least once, with stable ids
    B  every 202 stored exactly once             E  every answer typed and in time
    C  same key, same order                      G  every unit of money accounted for (`money_check`)

`drill` checks F, recovery, during the fault.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from domain.orders import OrderStatus
from domain.topology import Topology
from faults.event_check import compare_events
from faults.evidence import Event, Evidence, StoredOrder
from faults.figures_check import compare_figures
from faults.history import Attempt, Ending, History, OrderRequest
from faults.money_check import MoneyCheck, some

LATE_S_MAX = 1.5  # beyond the deadline: transport and scheduling on a machine that also runs the load and the servers
_HELD = (OrderStatus.RESERVED, OrderStatus.PAID)


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken invariant."""

    invariant: str
    text: str


@dataclass(frozen=True, slots=True)
class Expectations:
    """Permitted effects of a fault."""

    deadline_s: float = 2.0  # of the edge: FLASHSALE_REQUEST_DEADLINE_MS
    broken_connections: bool = False  # the edge itself, or the network to it, was harmed
    dead_letters: int = 0  # number of poison messages that the fault planted
    forgotten_events: bool = False  # Redis lost the event log that the embedded stack keeps there
    lost_orders: bool = False  # Redis lost its disk, and with it accepted orders that were not stored


def check(history: History, evidence: Evidence, *, cluster: Topology, expected: Expectations) -> list[Finding]:
    """All findings; empty when all invariants hold."""
    check_ = _Check(history, evidence, cluster, expected)
    money = MoneyCheck(evidence, cluster)
    parts = (
        ("A", check_.counters()), ("A", check_.units()), ("A", check_.guard()), ("A", check_.purchases()),
        ("B", check_.stored_once()), ("B", check_.as_told()), ("B", check_.unasked()), ("B", check_.versions()),
        ("B", check_.places()), ("B", check_.certain()),
        ("C", check_.same_order()), ("C", check_.records()), ("C", check_.cancellations()),
        ("D", check_.told()), ("D", check_.events()), ("D", check_.figures()),
        ("D", money.told(forgotten=expected.forgotten_events)),
        ("E", check_.typed()), ("E", check_.in_time()),
        ("G", money.one_row_each()), ("G", money.kept()), ("G", money.refunds()), ("G", money.sums()),
        ("G", money.shown(history)),
    )  # fmt: skip
    return [Finding(invariant, text) for invariant, texts in parts for text in texts]


def _tells(event: Event, row: StoredOrder) -> bool:
    """Whether an event describes the stored order. For older versions only the status of the first one is known."""
    if event.version == row.version:
        statuses = {OrderStatus(row.status).label}
    else:
        statuses = {OrderStatus.RESERVED.label} if event.version == 1 else {status.label for status in OrderStatus}
    same = (event.user_id, event.lines, event.total_minor) == (row.user_id, row.lines, row.total_minor)
    return same and event.status in statuses


class _Check:
    """One comparison; each method yields texts of findings."""

    def __init__(self, history: History, evidence: Evidence, cluster: Topology, expected: Expectations) -> None:
        self.history = history
        self.evidence = evidence
        self.cluster = cluster
        self.expected = expected
        self.skus = [item.sku for item in evidence.definition.items]
        self.asked: dict[tuple[UUID, str], OrderRequest] = {
            (request.user_id, request.key): request for request in history.requests if not request.misuse
        }
        self.rows_by_id = defaultdict(list)
        self.rows_by_key = defaultdict(list)
        for row in evidence.rows:
            self.rows_by_id[row.order_id].append(row)
            self.rows_by_key[row.user_id, row.key].append(row)

    # A

    def counters(self) -> Iterator[str]:
        """Lanes balance, and their sum equals the ledger."""
        totals: Counter[str] = Counter()
        moving: Counter[str] = Counter()
        for lane, stocks in self.evidence.lanes.items():
            if stocks is None:
                yield f"lane {lane} does not have the sale"
                return
            for sku, stock in zip(self.skus, stocks, strict=True):
                if not stock.is_balanced:
                    yield f"lane {lane}, {sku}: {stock} does not balance"
                totals[sku] += stock.available + stock.reserved + stock.paid + stock.rejected
                moving[sku] += stock.lent - stock.borrowed
        for sku, (units, _) in self.evidence.ledger.items():
            if totals[sku] != units:
                yield f"{sku}: the lanes account for {totals[sku]} units, the ledger has {units}"
            if moving[sku]:
                yield f"{sku}: the lanes lent {moving[sku]} units more than they borrowed: a transfer did not end"

    def units(self) -> Iterator[str]:
        """Redis and the shards count the same held units, at most the stock."""
        held = self._held()
        for index, sku in enumerate(self.skus):
            stock = self.evidence.ledger.get(sku, (0, 0))[0]
            if held[sku] > stock:
                yield f"{sku}: {held[sku]} units are sold of {stock}"
            counted = sum(s[index].reserved + s[index].paid for s in self.evidence.lanes.values() if s is not None)
            if counted != held[sku]:
                yield f"{sku}: Redis counts {counted} units as held, the shards hold {held[sku]}"

    def guard(self) -> Iterator[str]:
        """quota.sold = units held <= quota.granted <= the shard's grant; the grants are the ledger's `granted`."""
        held = self._held_by_shard()
        for (shard, sku), (granted, sold) in self.evidence.quota.items():
            total = self.evidence.grants.get((shard, sku), 0)
            if sold != held[shard, sku] or not sold <= granted <= total:
                yield f"shard {shard}, {sku}: holds {held[shard, sku]}, sold {sold}, granted {granted} of {total}"
        for sku, (stock, granted) in self.evidence.ledger.items():
            together = sum(total for (_, name), total in self.evidence.grants.items() if name == sku)
            if granted != together or granted > stock:
                yield f"{sku}: granted {granted} of {stock}, the shards were granted {together}"

    def purchases(self) -> Iterator[str]:
        """A user's purchase counters equal the held units, at most the limit."""
        held: Counter[tuple[UUID, str]] = Counter()
        for row in self.evidence.rows:
            if row.status in _HELD:
                for sku, quantity in row.lines:
                    held[row.user_id, sku] += quantity
        limits = {item.sku: item.per_user_limit for item in self.evidence.definition.items}
        if over := [f"{user}, {sku}: {units}" for (user, sku), units in held.items() if 0 < limits.get(sku, 0) < units]:
            yield f"{len(over)} users hold more than their limit: {some(over)}"
        counted = Counter(self.evidence.purchases)
        wrong = [place for place in held.keys() | counted.keys() if held[place] != counted[place]]
        if texts := [f"{user}, {sku}: {counted[user, sku]} of {held[user, sku]}" for user, sku in wrong]:
            yield f"{len(texts)} purchase counters differ from held units: {some(sorted(texts))}"

    def _held(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for (_, sku), units in self._held_by_shard().items():
            held[sku] += units
        return held

    def _held_by_shard(self) -> Counter[tuple[int, str]]:
        held: Counter[tuple[int, str]] = Counter()
        for row in self.evidence.rows:
            if row.status in _HELD:
                for sku, quantity in row.lines:
                    held[row.shard, sku] += quantity
        return held

    # B

    def stored_once(self) -> Iterator[str]:
        """Every 202 has one row, in the shard that its id names, equal to the request."""
        missing, repeated, different = [], [], []
        for request in self.asked.values():
            for order_id in request.order_ids:
                rows = self.rows_by_id.get(order_id, [])
                if not rows and not self.expected.lost_orders:
                    missing.append(str(order_id))
                if len(rows) > 1:
                    repeated.append(str(order_id))
                for row in rows:
                    right = (request.user_id, request.key, request.lines, self.cluster.shard_of_order(order_id))
                    if (row.user_id, row.key, row.lines, row.shard) != right:
                        different.append(str(order_id))
        if missing:
            yield f"{len(missing)} accepted orders are not stored: {some(missing)}"
        if repeated:
            yield f"{len(repeated)} orders are stored more than once: {some(repeated)}"
        if different:
            yield f"{len(different)} stored orders differ from their requests: {some(different)}"

    def as_told(self) -> Iterator[str]:
        """Each 2xx describes the order as requested, at the sale's prices, and as stored."""
        definition = self.evidence.definition
        prices = {item.sku: item.unit_price_minor for item in definition.items}
        wrong = []
        for request in self.asked.values():
            lines = tuple((sku, quantity, prices.get(sku)) for sku, quantity in request.lines)
            total = sum(quantity * (price or 0) for _, quantity, price in lines)
            answers = [(a, "reserved") for a in request.attempts] + [(a, "cancelled") for a in request.cancels]
            for attempt, status in answers:
                if (told := attempt.told) is None:
                    continue
                right = (definition.sale_id, status, lines, total, definition.currency, definition.hold_ms)
                hold_ms = told.expires_at_ms - told.reserved_at_ms
                said = (told.sale_id, told.status, told.lines, told.total_minor, told.currency, hold_ms)
                rows = self.rows_by_id.get(attempt.order_id, []) if attempt.order_id is not None else []
                stored = [
                    (row.prices_minor, row.total_minor, row.currency, row.reserved_at_ms, row.expires_at_ms)
                    for row in rows
                ]
                times = (told.reserved_at_ms, told.expires_at_ms)
                kept = (tuple(price for _, _, price in lines), total, definition.currency, *times)
                if said != right or any(other != kept for other in stored):
                    wrong.append(f"{attempt.order_id} ({request.key})")
        if wrong:
            yield f"{len(wrong)} answers differ from the request or the stored order: {some(wrong)}"

    def unasked(self) -> Iterator[str]:
        """Every stored order was requested, and no refused request is stored."""
        unasked, refused = [], []
        stored = {(row.user_id, row.key): row.order_id for row in self.evidence.rows}
        stored.update(self.evidence.records)
        for place, order_id in stored.items():
            request = self.asked.get(place)
            if request is None:
                unasked.append(str(order_id))
            elif request.ending is Ending.REFUSED:
                refused.append(f"{order_id} ({request.attempts[-1].code})")
        if unasked:
            yield f"{len(unasked)} stored orders were never requested: {some(unasked)}"
        if refused:
            yield f"{len(refused)} refused orders are stored: {some(refused)}"

    def versions(self) -> Iterator[str]:
        """Rows have all their versions, each in its own place, and Redis has the same newest version."""
        known = defaultdict(set)
        places: Counter[tuple[int, int]] = Counter()
        statuses = {}
        for order_id, version, lane, lane_seq, status in self.evidence.transitions:
            known[order_id].add(version)
            places[lane, lane_seq] += 1
            statuses[order_id, version] = status
        contradicted = []
        for order_id, version, lane, lane_seq, status in self.evidence.repeated:
            places[lane, lane_seq] += 1
            if statuses.get((order_id, version)) != status:
                contradicted.append(f"{order_id}:{version} by {lane}/{lane_seq}")
        if contradicted and not self.expected.lost_orders:
            yield f"{len(contradicted)} versions have a second entry with another status: {some(contradicted)}"
        # A lane that lost entries assigns numbers again until the watch closes it.
        if not self.expected.lost_orders and (
            doubled := [f"{lane}/{seq}" for (lane, seq), count in places.items() if count > 1]
        ):
            yield f"{len(doubled)} places of lanes are used twice: {some(doubled)}"
        if gaps := [str(r.order_id) for r in self.evidence.rows if known[r.order_id] != set(range(1, r.version + 1))]:
            yield f"{len(gaps)} orders lack a version: {some(gaps)}"
        behind = []
        for row in self.evidence.rows:
            entry = self.evidence.orders.get(row.order_id)
            if entry is None or (entry.version, int(entry.status)) != (row.version, row.status):
                behind.append(str(row.order_id))
        if behind:
            yield f"{len(behind)} orders have another version in Redis than in the shard: {some(behind)}"
        lost = [str(order_id) for order_id in self.evidence.orders if order_id not in self.rows_by_id]
        if lost:
            yield f"{len(lost)} orders are in Redis and in no shard: {some(lost)}"

    def places(self) -> Iterator[str]:
        """Every place that a lane assigned is stored or dead-lettered."""
        if self.expected.lost_orders:
            return
        for lane, (newest, known) in self.evidence.places.items():
            lost = [f"{lane}/{seq}" for seq in range(1, newest + 1) if seq not in known]
            if lost:
                yield f"{len(lost)} places of lane {lane} are stored nowhere: {some(lost)}"

    def certain(self) -> Iterator[str]:
        """No outcome is unknown after repeating with the same key."""
        left = [request.key for request in self.history.requests if request.ending is Ending.UNKNOWN]
        if left:
            yield f"{len(left)} outcomes stayed unknown: {some(left)}"
        if self.evidence.dead_letters != self.expected.dead_letters:
            yield f"{self.evidence.dead_letters} dead letters, {self.expected.dead_letters} were planted"

    # C

    def same_order(self) -> Iterator[str]:
        """One key has one order and equal answers; other lines under the key are refused."""
        several, reworded, misused, doubled = [], [], [], []
        for request in self.history.requests:
            if self._is_lost(request):
                continue  # its key is free again
            good = [attempt for attempt in request.attempts if attempt.ending is Ending.OK]
            if request.misuse:
                misused += [request.key] * bool(good)
                continue
            several += [request.key] * (len(request.order_ids) > 1)
            reworded += [request.key] * (len({attempt.body_hash for attempt in good}) > 1)
            doubled += [request.key] * (sum(not attempt.replayed for attempt in good) > 1)
        if several:
            yield f"{len(several)} keys were answered with several orders: {some(several)}"
        if reworded:
            yield f"{len(reworded)} repeated requests got another answer: {some(reworded)}"
        if misused:
            yield f"{len(misused)} keys were accepted with other lines: {some(misused)}"
        if doubled:
            yield f"{len(doubled)} keys were answered as new more than once: {some(doubled)}"
        told: Counter[UUID] = Counter(order_id for request in self.asked.values() for order_id in request.order_ids)
        if shared := [str(order_id) for order_id, count in told.items() if count > 1]:
            yield f"{len(shared)} orders answer several keys: {some(shared)}"

    def _is_lost(self, request: OrderRequest) -> bool:
        """Whether Redis lost an order of the request's key before it was stored."""
        first = self.asked.get((request.user_id, request.key), request)
        return self.expected.lost_orders and any(order_id not in self.rows_by_id for order_id in first.order_ids)

    def records(self) -> Iterator[str]:
        """One row per key, and an apply-once record that names it; else a repeated request makes a second order."""
        for (user_id, key), rows in self.rows_by_key.items():
            if len(rows) > 1:
                yield f"key {key} of user {user_id} has {len(rows)} rows"
        other = []
        for place, order_id in self.evidence.records.items():
            request = self.asked.get(place)
            if request is not None and request.order_ids not in (set(), {order_id}) and not self._is_lost(request):
                other.append(place[1])
        if other:
            yield f"{len(other)} apply-once records name another order than the answers: {some(other)}"
        if unnamed := [
            r.key for r in self.evidence.rows if self.evidence.records.get((r.user_id, r.key)) != r.order_id
        ]:
            yield f"{len(unnamed)} stored orders have no apply-once record that names them: {some(unnamed)}"

    def cancellations(self) -> Iterator[str]:
        """Every confirmed cancellation is stored, and every stored cancellation was requested."""
        wrong = []
        for request in self.asked.values():
            for order_id in request.order_ids:
                for row in self.rows_by_id.get(order_id, []):
                    cancelled = row.status == OrderStatus.CANCELLED
                    if cancelled == (request.cancel_ending is Ending.OK) or request.cancel_ending is Ending.UNKNOWN:
                        continue
                    lost = row.version == 1 or (row.version == 2 and row.status == OrderStatus.PAID)
                    if not cancelled and lost and self.expected.lost_orders:
                        continue  # Redis lost the cancellation before it was stored; a late payment may pay the order
                    wrong.append(str(order_id))
        if wrong:
            yield f"{len(wrong)} orders have another cancellation state than the answers: {some(wrong)}"

    # D

    def told(self) -> Iterator[str]:
        """At least one event for each version, equal to the stored order; equal ids have equal bytes."""
        seen = defaultdict(set)
        named = defaultdict(set)
        wrong = []
        for event in self.evidence.events:
            named[event.event_id].add((event.order_id, event.version))
            wrong += [event.event_id for row in self.rows_by_id.get(event.order_id, []) if not _tells(event, row)]
            seen[event.order_id, event.version].add((event.event_id, event.digest))
        stored = {(order_id, version) for order_id, version, *_ in self.evidence.transitions}
        # The embedded stack keeps the event log in the same Redis, so a lost disk loses it, too.
        retained = set() if self.expected.forgotten_events else stored
        if untold := [f"{order_id}:{version}" for order_id, version in retained - seen.keys()]:
            yield f"{len(untold)} versions were never published: {some(sorted(untold))}"
        if invented := [f"{order_id}:{version}" for order_id, version in seen.keys() - stored]:
            yield f"{len(invented)} events describe versions that are not stored: {some(sorted(invented))}"
        if changed := [str(order_id) for (order_id, _), told in seen.items() if len(told) > 1]:
            yield f"{len(changed)} events were published again with other content: {some(changed)}"
        if shared := [event_id for event_id, versions in named.items() if len(versions) > 1]:
            yield f"{len(shared)} event ids belong to several versions: {some(sorted(shared))}"
        if wrong:
            yield f"{len(wrong)} events differ from the stored order: {some(sorted(wrong))}"
        if self.evidence.outbox:
            yield f"{len(self.evidence.outbox)} rows stayed in the outbox: {some(self.evidence.outbox)}"

    def events(self) -> Iterator[str]:
        """Each event is in its partition and tells what its version stored."""
        statuses = {(order_id, version): status for order_id, version, _, _, status in self.evidence.transitions}
        yield from compare_events(self.evidence.events, self.evidence.rows, statuses)

    def figures(self) -> Iterator[str]:
        """Analytics has counted each state of each order once. A log that was lost may lack events."""
        if self.expected.forgotten_events or self.expected.lost_orders:
            return
        statuses = {(order_id, version): status for order_id, version, _, _, status in self.evidence.transitions}
        yield from compare_figures(self.evidence.figures, self.evidence.rows, statuses)

    # E

    def typed(self) -> Iterator[str]:
        """Answers are 2xx or a problem with its own status; connections end only where the fault ends them."""
        # A stopped edge may leave requests unanswered; any answer that it sends is typed.
        faulty = [a for a in self.history.attempts() if a.fault and (a.status or not self.history.excused(a))]
        if faulty:
            kinds = Counter(attempt.fault for attempt in faulty)
            yield f"{len(faulty)} answers are defective: {some([f'{c} x {t}' for t, c in kinds.most_common()])}"
        if self.expected.broken_connections:
            return
        broken = [a for a in self.history.attempts() if a.code.startswith("broken") and not self.history.excused(a)]
        if broken:
            kinds = Counter(attempt.code for attempt in broken)
            yield f"{len(broken)} requests failed: {some([f'{c} x {t}' for t, c in kinds.most_common()])}"

    def in_time(self) -> Iterator[str]:
        """No answer comes after the deadline, without the client's own delay."""
        late = [attempt for attempt in self.history.attempts() if self._is_late(attempt)]
        if late:
            worst = max(attempt.returned_at - attempt.invoked_at for attempt in late)
            yield f"{len(late)} answers came after the deadline of {self.expected.deadline_s:.1f} s, one took {worst:.1f} s"

    def _is_late(self, attempt: Attempt) -> bool:
        took_s = attempt.returned_at - attempt.invoked_at - attempt.lag_s - attempt.patience_s
        return took_s > self.expected.deadline_s + LATE_S_MAX and not self.history.excused(attempt)
