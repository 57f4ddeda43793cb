"""`python -m workers.recovery.rebuild --sale ID [--force] [--wait-s 60] [--json]`: rebuild one sale, then exit.

Needs running relays and shard writers. Progress goes to standard error, the report to standard output. Exit status: 0
the sale is open again; 1 it is not, the message says why, and another run continues; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import orjson

from domain.ids import parse_uuid
from runtime.audit import act_as, operator_act
from runtime.dead_letters import PostgresDeadLetters
from runtime.postgres.connection import BoundedConnection
from runtime.postgres.pool import POSTGRES_CONNECT_S, postgres_pool
from runtime.process import fingerprint
from runtime.process.errors import OperatorError
from runtime.process.service import settings_or_exit
from runtime.process.settings import Settings
from runtime.process.telemetry import configure_logging
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from workers.consuming import TRANSIENT
from workers.recovery.losses import LaneRecovery
from workers.recovery.rebuild.catalogue import CatalogueSide
from workers.recovery.rebuild.errors import RebuildError
from workers.recovery.rebuild.lanes import LanesSide
from workers.recovery.rebuild.procedure import Rebuild
from workers.recovery.rebuild.report import Report
from workers.recovery.rebuild.shards import ShardsSide

NAME = "rebuild"
WAIT_S = 60.0
WAIT_S_MAX = 3600.0
CALL_S_MAX = 120.0  # for a statement over all orders of a sale


def main() -> None:
    """Parse the command line, rebuild, report."""
    options = _parse(sys.argv[1:])
    settings = settings_or_exit(NAME, all_shards=True)
    configure_logging(NAME, settings.log_level)
    try:
        with act_as(operator_act()):
            report = asyncio.run(rebuild(settings, options.sale, force=options.force, wait_s=options.wait_s))
    except (RebuildError, OperatorError) as error:
        _fail(str(error), options.json)
    except TRANSIENT as error:
        _fail(f"{type(error).__name__}: {error}", options.json)
    if options.json:
        sys.stdout.write(orjson.dumps(report.as_document(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(report)


async def rebuild(settings: Settings, sale_id: UUID, *, force: bool, wait_s: float) -> Report:
    """Open clients, rebuild, close clients. Raises RebuildError and the errors of the servers' clients."""
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        await fingerprint.check(redis, settings.topology)
        queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
        stack.push_async_callback(queue.close)
        pool = await stack.enter_async_context(postgres_pool(settings.catalogue_dsn, size_max=2, call_s_max=CALL_S_MAX))
        shards = [
            await stack.enter_async_context(postgres_pool(dsn, size_max=3, call_s_max=CALL_S_MAX))
            for dsn in settings.shard_dsns
        ]
        # A connection of its own: the lock must live as long as the run and end when the run dies.
        guard = await BoundedConnection.connect(
            settings.catalogue_session_dsn.get_secret_value(), autocommit=True, connect_timeout=POSTGRES_CONNECT_S
        )
        stack.push_async_callback(guard.close)
        catalogue = CatalogueSide(pool, sale_id)
        await catalogue.lock(guard)
        run = Rebuild(
            sale_id,
            catalogue=catalogue,
            shards=ShardsSide(shards, sale_id, cluster=settings.topology),
            lanes=LanesSide(redis, sale_id, mark=uuid4().hex),
            recovery=LaneRecovery(redis=redis, catalogue=pool, shards=shards),
            queue=queue,
            letters=PostgresDeadLetters(pool, letters_max=settings.dead_letters_max),
            wait_s=wait_s,
            kept_s=settings.sale_kept_s,
        )
        return await run.run(force=force)


def _fail(problem: str, as_json: bool) -> Any:
    if as_json:
        sys.stdout.write(orjson.dumps({"error": problem}).decode() + "\n")
    sys.stderr.write(f"{NAME}: {problem}\n")
    raise SystemExit(1)


def _print(report: Report) -> None:
    document = report.as_document()
    orders = ", ".join(f"{count} {status}" for status, count in document["orders"].items()) or "none"
    sys.stdout.write(f"sale {report.sale_id} is rebuilt, epoch {report.epoch}; orders: {orders}\n")
    for sku in document["skus"]:
        sys.stdout.write(
            f"  {sku['sku']}: {sku['available']} available, {sku['reserved']} reserved, {sku['paid']} paid of {sku['stock']}\n"
        )
    for lane in document["lost"]:
        sys.stdout.write(f"  lane {lane['lane']}: {lane['entries']} accepted entries are lost\n")


def _sale_id(text: str) -> UUID:
    sale_id = parse_uuid(text)
    if sale_id is None:
        raise argparse.ArgumentTypeError("not a sale id")
    return sale_id


def _wait_s(text: str) -> float:
    wait_s = float(text)
    if not 0 < wait_s <= WAIT_S_MAX:
        raise argparse.ArgumentTypeError(f"more than 0, at most {WAIT_S_MAX:.0f} seconds")
    return wait_s


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m workers.recovery.rebuild", description="Rebuild a sale that Redis lost, from PostgreSQL."
    )
    parser.add_argument("--sale", type=_sale_id, required=True, help="id of the sale")
    parser.add_argument("--force", action="store_true", help="rebuild a healthy sale, too; it is closed meanwhile")
    parser.add_argument(
        "--wait-s",
        type=_wait_s,
        default=WAIT_S,
        help="bound of each wait for relays, writers and retries (default: 60)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
