"""Runs the reservation script directly: orders/s with and without fsync, bytes per order, against a naive script.

Measures only Redis and the script: no HTTP, no tokens. The client builds every command beforehand and keeps two
batches on the wire. Server and client share the machine, so the most reliable result is the ratio to the naive script
in the same run.

    python -m perf.script_bench [--orders N] [--batch N] [--rounds N] [--save] [--json] [--gate]
"""

from __future__ import annotations

import argparse
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import redis

from devstack.servers import RedisServer
from domain import ids, topology
from domain.orders import OrderEntry, OrderLine, OrderStatus, encode_body, pack_key
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, Stock
from perf.results import Figure, Target, add_options, conclude
from reservation.scripts import LOAD, RESERVE
from runtime.redis.scripts import Script

LANE = 0
IN_FLIGHT = 2
METHOD = (
    "Prebuilt EVALSHA of 64 orders, two on the wire, one connection, one lane, full semantics, fresh users with 1 or "
    "3 orders each, idempotency keys of 16 characters or UUIDs of 36; beside it a naive script of ten calls per order "
    "in the same run. Memory: used_memory with the stream untrimmed, and after the stream is trimmed as by the relay."
)
# A naive design: ten calls per order; reads and writes sequence, definition and stock for each order.
NAIVE = """#!lua
local reply = {}
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
for i = 1, #KEYS / 6 do
  local k, a = (i - 1) * 6, (i - 1) * 3
  local definition = redis.call('HGETALL', KEYS[k + 1])
  local answer = 'accepted'
  if redis.call('EXISTS', KEYS[k + 5]) == 1 then
    answer = redis.call('GET', KEYS[k + 5])
  else
    local placed = redis.call('INCR', KEYS[k + 3])
    redis.call('EXPIRE', KEYS[k + 3], 86400)
    if tonumber(redis.call('GET', KEYS[k + 2])) < 1 then
      answer = 'sold_out'
    else
      redis.call('DECR', KEYS[k + 2])
      redis.call('INCR', KEYS[k + 2] .. ':reserved')
      redis.call('HSET', KEYS[k + 4], 'status', 'reserved', 'at', now_ms, 'body', ARGV[a + 3])
      redis.call('SET', KEYS[k + 5], ARGV[a + 1], 'EX', 86400)
      redis.call('XADD', KEYS[k + 6], '*', 'status', 'reserved', 'at', now_ms, 'body', ARGV[a + 3])
    end
  end
  reply[i] = answer
end
return reply
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: orders a second, and bytes per order in Redis, with the stream and without its trimmed part."""

    orders_per_s: float
    bytes_an_order: float
    bytes_after_trim: float


@dataclass(frozen=True, slots=True)
class Load:
    """The load. Idempotency keys are hexadecimal digits or, with 36 characters, UUIDs as clients make them."""

    orders: int
    batch: int
    orders_per_user: int
    key_length: int = 16

    @property
    def name(self) -> str:
        """The name in the report."""
        return f"{self.orders_per_user} an user, {self.key_length}-character keys"


def pack_command(parts: Sequence[bytes]) -> bytes:
    """RESP: `*n` then each part as a bulk string."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        out.append(b"$%d\r\n%b\r\n" % (len(part), part))
    return b"".join(out)


def make_sale() -> SaleDefinition:
    """A sale that is open for an hour, with one SKU and no purchase limit."""
    now_ms = int(time.time() * 1000)
    return SaleDefinition(
        ids.new_uuid7(), "bench", 1, 1, LaneSaleState.RUNNING, now_ms - 1000, now_ms + 3_600_000, 600_000, "EUR",
        (LANE,), (SaleItem("SKU-1", 1999, 0),),
    )  # fmt: skip


def load_sale(client: redis.Redis, sale: SaleDefinition) -> None:
    client.eval(
        LOAD.source, 1, topology.lane_state_key(LANE), ids.short(sale.sale_id),
        sale.pack_for_lane(), Stock.fresh(1_000_000_000).pack(),
    )  # fmt: skip


def make_orders(sale: SaleDefinition, users: Sequence[UUID], key_length: int) -> list[tuple[UUID, UUID, str, bytes]]:
    """One order per user: user, order id, idempotency key, body."""
    orders = []
    for user in users:
        key = str(uuid4()) if key_length == 36 else secrets.token_hex(key_length // 2)
        order_id = ids.order_id(
            unix_ms=int(time.time() * 1000), lane=LANE, bucket=topology.bucket_of_user(user),
            random=secrets.randbits(52),
        )  # fmt: skip
        entry = OrderEntry(
            order_id, user, sale.sale_id, key, "EUR", (OrderLine(0, "SKU-1", 1, 1999),), OrderStatus.RESERVED, 1, 1,
            0, 0, 0,
        )  # fmt: skip
        orders.append((user, order_id, key, encode_body(entry)))
    return orders


def reserve_commands(
    script: Script, sale: SaleDefinition, orders: Sequence[tuple[UUID, UUID, str, bytes]], batch: int
) -> list[bytes]:
    commands = []
    for start in range(0, len(orders), batch):
        part = orders[start : start + batch]
        keys = [topology.lane_state_key(LANE).encode(), topology.lane_stream_key(LANE).encode()]
        args = [b"%d" % len(part), b"1", b"1000", b"1000", b"100000000"]
        args += [ids.short(sale.sale_id).encode(), sale.edition]
        for user, order_id, key, body in part:
            keys += [topology.user_key(LANE, sale.sale_id, user), topology.order_key(order_id)]
            args += [pack_key(key), b"\0\0\1", body]
        commands.append(pack_command([b"EVALSHA", script.sha.encode(), b"%d" % len(keys), *keys, *args]))
    return commands


def naive_commands(
    sha: str, sale: SaleDefinition, orders: Sequence[tuple[UUID, UUID, str, bytes]], batch: int
) -> list[bytes]:
    commands = []
    name = f"{topology.lane_tag(LANE)}:n:{ids.short(sale.sale_id)}"
    for start in range(0, len(orders), batch):
        keys: list[bytes] = []
        args: list[bytes] = []
        for user, order_id, key, body in orders[start : start + batch]:
            own, order = f"{name}:{ids.short(user)}", f"{topology.lane_tag(LANE)}:o:{ids.short(order_id)}"
            keys += [
                f"{name}:definition".encode(), f"{name}:stock".encode(), f"{own}:count".encode(),
                order.encode(), f"{own}:{key}".encode(), f"{name}:stream".encode(),
            ]  # fmt: skip
            args += [str(order_id).encode(), key.encode(), body]
        commands.append(pack_command([b"EVALSHA", sha.encode(), b"%d" % len(keys), *keys, *args]))
    return commands


def drive(port: int, commands: Sequence[bytes]) -> float:
    """Send all commands, at most IN_FLIGHT of them unanswered. Returns the seconds. Raises on an error reply."""
    # redis[hiredis] installs hiredis.
    from hiredis import Reader

    reader = Reader()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.perf_counter()
        sent = answered = 0
        while answered < len(commands):
            while sent < len(commands) and sent - answered < IN_FLIGHT:
                sock.sendall(commands[sent])
                sent += 1
            reader.feed(sock.recv(65536))
            while (answer := reader.gets()) is not False:
                if isinstance(answer, Exception):
                    raise answer
                if any(isinstance(member, int) and member % 16 for member in answer[1:]):
                    raise AssertionError(f"not accepted: {answer}")
                answered += 1
        return time.perf_counter() - started


def measure(server: RedisServer, load: Load, *, naive: bool) -> Sample:
    """One run on an emptied server with fresh users. `used_memory` includes tables and all else of the server."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        sale, stream = make_sale(), topology.lane_stream_key(LANE)
        if naive:
            name = f"{topology.lane_tag(LANE)}:n:{ids.short(sale.sale_id)}"
            stream = f"{name}:stream"
            client.hset(f"{name}:definition", mapping={"state": 1, "starts": 0, "ends": 1 << 40, "price": 1999})
            client.set(f"{name}:stock", 1_000_000_000)
            sha = str(client.script_load(NAIVE))
        else:
            client.script_load(RESERVE.source)
            load_sale(client, sale)
            sha = ""
        users = [ids.new_uuid7() for _ in range(load.orders // load.orders_per_user)]
        commands: list[bytes] = []
        for _ in range(load.orders_per_user):
            made = make_orders(sale, users, load.key_length)
            commands += (
                naive_commands(sha, sale, made, load.batch)
                if naive
                else reserve_commands(RESERVE, sale, made, load.batch)
            )
        before = client.info("memory")["used_memory"]
        seconds = drive(server.port, commands)
        used = client.info("memory")["used_memory"] - before
        assert client.xtrim(stream, maxlen=0, approximate=False) == len(users) * load.orders_per_user
        left = client.info("memory")["used_memory"] - before
    count = len(users) * load.orders_per_user
    return Sample(count / seconds, used / count, left / count)


def summary(pairs: Sequence[tuple[Sample, Sample]]) -> dict[str, float]:
    """Medians over the rounds, each a sample of our script and one of the naive one."""
    ours, naive = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {
        "orders_per_s": round(statistics.median(s.orders_per_s for s in ours)),
        "naive_orders_per_s": round(statistics.median(s.orders_per_s for s in naive)),
        "ratio": round(statistics.median(a.orders_per_s / b.orders_per_s for a, b in pairs), 2),
        "bytes_an_order": round(statistics.median(s.bytes_an_order for s in ours)),
        "bytes_after_trim": round(statistics.median(s.bytes_after_trim for s in ours)),
        "naive_bytes_an_order": round(statistics.median(s.bytes_an_order for s in naive)),
        "naive_bytes_after_trim": round(statistics.median(s.bytes_after_trim for s in naive)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    add_options(parser)
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    for durable in (False, True):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # on a disk, not in a memory file system
            server = RedisServer(Path(folder), durable=durable)
            server.start()
            try:
                # The keys' length hardly affects speed, and fsync not the memory: measure 36 characters without it.
                for key_length in (16,) if durable else (16, 36):
                    for orders_per_user in (1, 3):
                        load = Load(options.orders, options.batch, orders_per_user, key_length)
                        pairs = [
                            (measure(server, load, naive=False), measure(server, load, naive=True))
                            for _ in range(options.rounds)
                        ]
                        report[f"{'fsync' if durable else 'memory'}, {load.name}"] = summary(pairs)
            finally:
                server.stop()
    alone = Load(options.orders, options.batch, 1).name
    targets = [
        Target(
            "script without fsync", report[f"memory, {alone}"]["orders_per_s"], "orders/s", least=100_000, goal=150_000
        ),
        Target("script with fsync", report[f"fsync, {alone}"]["orders_per_s"], "orders/s", least=80_000, goal=110_000),
        *(
            Target(f"Redis memory, {name}", numbers["bytes_an_order"], "bytes an order", most=350, goal=300)
            for name, numbers in report.items()
            if name.startswith("memory")
        ),
    ]
    text = [
        f"{name} " + " ".join(f"{key}={value:,}" for key, value in numbers.items()) for name, numbers in report.items()
    ]
    return conclude(Figure("script", METHOD, targets, report), options, text)


if __name__ == "__main__":
    sys.exit(main())
