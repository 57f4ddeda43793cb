"""The places of all data: lanes, virtual buckets, shards, and every name of a key, stream, queue and topic.

Performs no I/O. Cluster settings must agree in every process: `Topology.fingerprint` is compared in Redis at start.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from domain import ids
from domain.orders import ENTRY_FORMAT

BUCKETS = 1024
LAYOUT = 3  # of the lanes' keys and values: processes of two layouts must not run together
_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_MASK_64 = (1 << 64) - 1
_GLOB_CHARACTER = re.compile(rb"[*?\[\\]")  # of `stringmatchlen` in Redis; an id may hold any byte

# Names that belong to no lane.
FINGERPRINT_KEY = "flashsale:fingerprint"
BUCKETS_KEY = "flashsale:buckets"  # string: JSON of the map of moved buckets (`BucketMap.as_document`)
BUCKETS_CHANNEL = "flashsale:buckets:changed"  # pub/sub, payload: the map's version
BUCKETS_KNOWN_KEY = "flashsale:buckets:known"  # hash: process -> JSON of the map's version and the shards that it knows
SALES_KEY = "flashsale:sales"  # set of published sale ids
SALES_CHANNEL = "flashsale:sales:changed"  # pub/sub, payload: the sale id, after SALE_GONE when it leaves Redis
SALE_GONE = "-"  # a document that is missing without this word was lost, and its sale is unavailable, not unknown
POSITIONS_SINCE_KEY = "flashsale:positions:since"  # string of the cache Redis: Unix ms since when it remembers
CACHE_CHANNEL = "flashsale:cache:changed"  # pub/sub of the cache Redis, payload: the place whose row changed
SESSION_ENDS_KEY = (
    "flashsale:session-ends"  # sorted set: 16 bytes of a user id, or no bytes for all users -> generation (Unix ms)
)
SESSION_ENDS_CHANNEL = "flashsale:session-ends:changed"  # pub/sub, payload: generation, a space, the member
VERDICTS_KEY = "flashsale:verdicts"  # hash sale id -> JSON of the reconciler's last verdict
MONEY_VERDICT_KEY = "flashsale:verdict:money"  # string: JSON of the reconciler's last verdict on invariant G
ACCEPTED_KEY = "flashsale:accepted"  # hash sale id -> orders accepted for the first time, flushed by edges
REFUSED_KEY_PREFIX = "flashsale:refused:"  # + sale id: hash code -> count, flushed by edges

# Destinations of outbox rows. Those of events are a topic each, without the version in its name.
DESTINATION_ORDER_EVENTS = "events.orders"
DESTINATION_PAYMENT_EVENTS = "events.payments"
DESTINATION_USER_EVENTS = "events.users"
DESTINATION_PRODUCT_EVENTS = "events.products"
DESTINATION_SALE_EVENTS = "events.sales"
DESTINATION_NOTICES = "notices"
DESTINATION_REFUNDS = "refunds"
EMAIL_QUEUE = "notices.email"  # queue of notices that go out as e-mail
PUSH_QUEUE = "notices.push"  # queue of notices that go out as web push
REFUNDS_QUEUE = "refunds"
# Delays before each further attempt. Fixed ladders, because RabbitMQ needs one delay queue for each delay of a queue.
ORDER_RETRY_DELAYS_MS = (200, 400, 800, 1_600, 3_200, 6_400, 12_800)
# Servers that greylist take a letter after some minutes; a token of half an hour is of no use much later.
EMAIL_RETRY_DELAYS_MS = (1_000, 5_000, 30_000, 120_000, 300_000, 600_000)
# A push that comes hours later is of no use.
PUSH_RETRY_DELAYS_MS = (1_000, 5_000, 30_000, 120_000, 600_000)
REFUND_RETRY_DELAYS_MS = (1_000, 5_000, 30_000, 120_000, 600_000, 1_800_000)
OUTBOX_PARTITIONS = 16
POISON_ENTRIES = "orders.poison"  # dead letters of the relay: entries that belong to no shard; no queue
POISON_EVENTS = "events.poison"  # dead letters of the announcer: records of the log that are no events; no queue
POISON_OUTBOX = "outbox.poison"  # dead letters of the dispatcher: malformed rows; no queue
# Topics of the event log. The number is raised when records of a topic can no longer be read as before.
TOPIC_ORDERS = "orders.v1"
TOPIC_PAYMENTS = "payments.v1"
TOPIC_USERS = "users.v1"
TOPIC_PRODUCTS = "products.v1"
TOPIC_SALES = "sales.v1"


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A work queue as a broker declares it: its name, its retry delays, its bound.

    `retry_delays_ms` are all delays that its consumers use. `length_max` is in messages, retries included; None: the
    process's setting.
    """

    name: str
    retry_delays_ms: tuple[int, ...] = ORDER_RETRY_DELAYS_MS
    length_max: int | None = None


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic of the event log as it is declared: its name, its partitions, its retention.

    Partitions never change: they keep the order of a key. A carrier retains by number (`records_max` of each partition;
    None: the process's setting), by age (`retention_s`), or both.
    """

    name: str
    partitions: int
    records_max: int | None = None
    retention_s: int = 7 * 24 * 3600


TOPIC_OF_DESTINATION = {
    DESTINATION_ORDER_EVENTS: TOPIC_ORDERS,
    DESTINATION_PAYMENT_EVENTS: TOPIC_PAYMENTS,
    DESTINATION_USER_EVENTS: TOPIC_USERS,
    DESTINATION_PRODUCT_EVENTS: TOPIC_PRODUCTS,
    DESTINATION_SALE_EVENTS: TOPIC_SALES,
}
# Every topic: the one place where topics are declared. Their partitions are those of the outbox rows.
TOPICS = tuple(TopicSpec(topic, OUTBOX_PARTITIONS) for topic in TOPIC_OF_DESTINATION.values())


def user_hash(user_id: UUID) -> int:
    """64-bit FNV-1a over the id's 16 bytes, then xor-folded (http://www.isthe.com/chongo/tech/comp/fnv/).

    The low 10 bits select the virtual bucket, the bits above select the home lane. (Above bit 32, the last bytes hardly
    change an FNV hash.)
    """
    value = _FNV_OFFSET
    for byte in user_id.bytes:
        value = ((value ^ byte) * _FNV_PRIME) & _MASK_64
    return value ^ (value >> 29)


def bucket_of_user(user_id: UUID) -> int:
    """Virtual bucket of a user, 0..1023."""
    return user_hash(user_id) % BUCKETS


def bucket_of_address(email_folded: str) -> int:
    """Virtual bucket of an address's place in the login index, 0..1023."""
    return int.from_bytes(hashlib.blake2b(email_folded.encode(), digest_size=8).digest(), "big") % BUCKETS


def home_lane(user_id: UUID, lanes: tuple[int, ...]) -> int:
    """The lane of a sale in which this user's orders are taken."""
    return lanes[(user_hash(user_id) >> 10) % len(lanes)]


def outbox_partition(key: str) -> int:
    """Partition of an outbox row, 0..15: rows of one key stay in order. As `event_partition` in the databases."""
    return hashlib.sha256(key.encode()).digest()[0] % OUTBOX_PARTITIONS


_LANE_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase + "-_"


def lane_tag(lane: int) -> str:
    """Hash tag that keeps a lane's keys together in Redis Cluster: `{7}`, `{A}` for 10, `{10}` for 64.

    The lane in base 64, one character usually: two keys of every order bear it.
    """
    high, low = divmod(lane, len(_LANE_DIGITS))
    return f"{{{_LANE_DIGITS[high] if high else ''}{_LANE_DIGITS[low]}}}"


def lane_state_key(lane: int) -> str:
    """Hash: `seq`, and for each sale `d:<sale>` (definition) and `s:<sale>:<index>` (stock)."""
    return f"{lane_tag(lane)}:state"


def lane_stream_key(lane: int) -> str:
    """Stream of entries; the id of an entry is `<lane_seq>-0`.

    Field `e` is the order entry. An entry with transport headers has the field `h` as well (`domain.headers`).
    """
    return f"{lane_tag(lane)}:stream"


def lane_beat_key(lane: int) -> str:
    """Empty string, written after a batch of orders with durability `replicated`: WAIT waits for writes only."""
    return f"{lane_tag(lane)}:beat"


def lane_relayed_key(lane: int) -> str:
    """Hash: `<destination>/<shards>` -> lane_seq up to which the destination has confirmed its entries."""
    return f"{lane_tag(lane)}:relayed"


def lane_lease_key(lane: int) -> str:
    """String: fencing token of the relay that owns the lane."""
    return f"{lane_tag(lane)}:lease"


def lane_fence_key(lane: int) -> str:
    """Counter from which fencing tokens are drawn."""
    return f"{lane_tag(lane)}:fence"


def worker_lease_key(role: str) -> str:
    """String: fencing token of the process that does a worker's work alone, such as `expiry-shard-2`."""
    return f"flashsale:{{{role}}}:lease"


def worker_fence_key(role: str) -> str:
    """Counter from which a role's fencing tokens are drawn."""
    return f"flashsale:{{{role}}}:fence"


# Numerous keys hold the ids as bytes and no colon (docs/adr/0019). An id may contain a brace, but Redis Cluster takes
# the first hash tag of a key, which is the lane's. A user's key has no letter: no other key of a lane is as long.


def user_key_prefix(lane: int, sale_id: UUID) -> bytes:
    """The bytes before the user's id in `user_key`."""
    return lane_tag(lane).encode("ascii") + sale_id.bytes


def user_key(lane: int, sale_id: UUID, user_id: UUID) -> bytes:
    """Hash of one user in one sale: USER_STATE_FIELD, and an apply-once record per packed idempotency key."""
    return user_key_prefix(lane, sale_id) + user_id.bytes


USER_STATE_FIELD = b""  # rate and purchase counters; a key has at least one character, so this is none


def user_key_pattern(lane: int, sale_id: UUID) -> bytes:
    """SCAN pattern of every user hash of a sale in a lane."""
    return _GLOB_CHARACTER.sub(rb"\\\g<0>", user_key_prefix(lane, sale_id)) + b"?" * ids.ID_BYTES


def order_key_prefix(lane: int) -> bytes:
    """The bytes before the order's id in `order_key`."""
    return lane_tag(lane).encode("ascii") + b"o"


# SCAN pattern of every order's value. A user's hash matches when its ids hold `}o` there: a scan must expect one.
ORDER_KEYS_PATTERN = b"{*}o" + b"?" * ids.ID_BYTES


def order_key(order_id: UUID) -> bytes:
    """String: the order at its newest version (`domain.orders.encode_value`)."""
    return order_key_prefix(ids.lane_of(order_id)) + order_id.bytes


def id_of_key(key: bytes) -> UUID:
    """The user's id in a `user_key`, the order's in an `order_key`."""
    return UUID(bytes=key[-ids.ID_BYTES :])


def payment_mark_key(order_id: UUID) -> bytes:
    """String: the order has payments or refunds, which are in its shard. Set before the provider gets its answer."""
    return lane_tag(ids.lane_of(order_id)).encode("ascii") + b"p" + order_id.bytes


def order_change_keys(order_id: UUID, *, sale_id: UUID, user_id: UUID) -> tuple[str, str, bytes, bytes]:
    """KEYS of the scripts that change one order (`cancel-4` and its like): state, stream, order, user."""
    lane = ids.lane_of(order_id)
    return lane_state_key(lane), lane_stream_key(lane), order_key(order_id), user_key(lane, sale_id, user_id)


def restock_key(lane: int, sale_id: UUID) -> str:
    """Hash of the restocks that were applied: idempotency key -> `<index>:<quantity>`."""
    return f"{lane_tag(lane)}:r:{ids.short(sale_id)}"


def transfers_key(lane: int, sale_id: UUID) -> str:
    """Hash of a lane's transfers with the other lanes of a sale (`reservation.transfers`).

    `o:<index>:<lane>` -> `<number>:<units>` of the newest transfer to that lane, with 0 units once it is cleared;
    `i:<index>:<lane>` -> number of the newest transfer that was credited from that lane.
    """
    return f"{lane_tag(lane)}:t:{ids.short(sale_id)}"


def sale_key(sale_id: UUID) -> str:
    """String: the sale's definition as JSON (`SaleDefinition.as_document`)."""
    return f"flashsale:sale:{sale_id}"


def definition_field(sale_id: UUID) -> str:
    """Field of the lane's state hash with the packed definition."""
    return f"d:{ids.short(sale_id)}"


def stock_field(sale_id: UUID, sku_index: int) -> str:
    """Field of the lane's state hash with a SKU's counters."""
    return f"s:{ids.short(sale_id)}:{sku_index}"


def order_queue(shard: int) -> str:
    """Queue of order entries for one shard."""
    return f"orders.shard.{shard}"


def dispatcher_lease_key(database: str) -> str:
    """String: fencing token of the dispatcher of one database's outbox."""
    return f"flashsale:{{dispatcher:{database}}}:lease"


def dispatcher_fence_key(database: str) -> str:
    """Counter from which fencing tokens are drawn."""
    return f"flashsale:{{dispatcher:{database}}}:fence"


WORKER_LEASES = "flashsale:{*}:lease"  # glob pattern of the keys of workers' and dispatchers' leases


def fence_key_of(lease_key: str) -> str:
    """Counter from which the fencing tokens of a lease of any kind are drawn."""
    return lease_key.removesuffix(":lease") + ":fence"


class BucketMap:
    """The owners of buckets that left their first shard, as this process knows them. An old map is safe, only slower:
    each shard refuses writes to buckets that it does not own (docs/adr/0041)."""

    __slots__ = ("_owners", "version")

    def __init__(self) -> None:
        """No bucket has moved."""
        self._owners: dict[int, int] = {}
        self.version = 0

    def __eq__(self, other: object) -> bool:
        """Whether both know the same owners at the same version."""
        return isinstance(other, BucketMap) and (self.version, self._owners) == (other.version, other._owners)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def owner(self, bucket: int) -> int | None:
        """The shard of a bucket that has moved; None for one that never did."""
        return self._owners.get(bucket)

    def adopt(self, version: int, owners: Mapping[int, int]) -> bool:
        """Take over a map that is newer than this one; whether it is."""
        if version <= self.version:
            return False
        self._owners, self.version = dict(owners), version
        return True

    def learn(self, bucket: int, shard: int) -> None:
        """Take over one owner, which the bucket's former shard named."""
        self._owners[bucket] = shard


@dataclass(frozen=True, slots=True)
class Topology:
    """Cluster settings: the same everywhere, or processes refuse to run.

    `shards` counts the databases. `first_shards` of them (0: all) had the buckets at first; those that were added later
    own only buckets that were moved there, so they are not part of the fingerprint.
    """

    lanes: int = 4
    shards: int = 4
    first_shards: int = 0
    buckets: BucketMap = field(default_factory=BucketMap, compare=False, repr=False)

    def first_shard_of_bucket(self, bucket: int) -> int:
        """The first bucket map: equal ranges."""
        return bucket * (self.first_shards or self.shards) // BUCKETS

    def shard_of_bucket(self, bucket: int) -> int:
        """The shard that owns a bucket now, as far as this process knows."""
        moved = self.buckets.owner(bucket)
        return self.first_shard_of_bucket(bucket) if moved is None else moved

    def shard_of_user(self, user_id: UUID) -> int:
        """Shard of a user's rows."""
        return self.shard_of_bucket(bucket_of_user(user_id))

    def shard_of_address(self, email_folded: str) -> int:
        """Shard of an address's place in the login index."""
        return self.shard_of_bucket(bucket_of_address(email_folded))

    def shard_of_order(self, order_id: UUID) -> int:
        """Shard of an order, read off its id."""
        return self.shard_of_bucket(ids.bucket_of(order_id))

    def lanes_of_sale(self, sale_id: UUID, *, count: int) -> tuple[int, ...]:
        """The lanes of a sale about to be published: `count` neighbours from a start that spreads sales evenly."""
        assert 1 <= count <= self.lanes
        start = user_hash(sale_id) % self.lanes
        return tuple((start + step) % self.lanes for step in range(count))

    @property
    def queues(self) -> tuple[QueueSpec, ...]:
        """Every work queue: the one place where queues are declared."""
        orders = (QueueSpec(order_queue(shard)) for shard in range(self.shards))
        return (
            *orders,
            QueueSpec(EMAIL_QUEUE, retry_delays_ms=EMAIL_RETRY_DELAYS_MS),
            QueueSpec(PUSH_QUEUE, retry_delays_ms=PUSH_RETRY_DELAYS_MS),
            QueueSpec(REFUNDS_QUEUE, retry_delays_ms=REFUND_RETRY_DELAYS_MS),
        )

    @property
    def fingerprint(self) -> str:
        """Short digest of the settings that must agree between processes."""
        text = f"v1 lanes={self.lanes} buckets={BUCKETS} shards={self.first_shards or self.shards} hash=fnv1a64"
        text += f" entry={ENTRY_FORMAT} layout={LAYOUT}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def position_key(database: str, subject: str) -> str:
    """String in the cache Redis: the position that a replica must have replayed to show the last write of a subject."""
    return f"flashsale:positions:{database}:{subject}"


def cache_key(cache: str, key: str) -> str:
    """Place of a row in the cache Redis. `cache` has no colon; `key` is the cache's own name of the row."""
    return f"flashsale:cache:{cache}:{key}"


def parse_cache_key(place: str) -> tuple[str, str] | None:
    """Cache and key of a place, None for another text."""
    prefix, cached, cache, *key = (*place.split(":", 3), "", "")[:4]
    return (cache, key[0]) if (prefix, cached) == ("flashsale", "cache") and key[0] else None
