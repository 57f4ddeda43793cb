"""`python -m workers.analytics.rebuild [--dry-run] [--force] [--json]`: count the figures again, then exit.

Progress goes to standard error, the report to standard output. Exit status: 0 the new figures are served; 1 the figures
are as before, and the message says why; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import orjson
from psycopg_pool import PoolTimeout

from runtime.event_log import EventLogUnavailable, event_log_of
from runtime.postgres.connection import BoundedConnection
from runtime.postgres.pool import POSTGRES_CONNECT_S, postgres_pool
from runtime.process.service import settings_or_exit
from runtime.process.settings import Settings
from runtime.process.telemetry import configure_logging
from workers.analytics.rebuild.errors import RebuildError
from workers.analytics.rebuild.generations import NEXT_SPACE, Generations
from workers.analytics.rebuild.procedure import Rebuild, Report
from workers.analytics.store import Figures
from workers.consuming import TRANSIENT

NAME = "analytics rebuild"
CALL_S_MAX = 600.0  # for a statement over all figures
_AWAY: tuple[type[Exception], ...] = (EventLogUnavailable, PoolTimeout, *TRANSIENT)


def main() -> None:
    """Parse the command line, rebuild, report."""
    options = _parse()
    settings = settings_or_exit(NAME, needs=["analytics_dsn"])
    configure_logging(NAME, settings.log_level)
    try:
        report = asyncio.run(rebuild(settings, dry_run=options.dry_run, force=options.force))
    except RebuildError as error:
        _fail(str(error), options.json)
    except _AWAY as error:
        _fail(f"{type(error).__name__}: {error}. The figures are as before; run it again", options.json)
    if options.json:
        sys.stdout.write(orjson.dumps(report.as_document(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(report)


async def rebuild(settings: Settings, *, dry_run: bool, force: bool) -> Report:
    """Open clients, rebuild, close clients. Raises RebuildError and the errors of the servers' clients."""
    assert settings.analytics_dsn is not None, "checked by `settings_or_exit`"
    carrier = urlsplit(settings.event_log_url).scheme
    async with AsyncExitStack() as stack:
        event_log = event_log_of(settings)
        stack.push_async_callback(event_log.close)
        pool = await stack.enter_async_context(postgres_pool(settings.analytics_dsn, size_max=2, call_s_max=CALL_S_MAX))
        generations = Generations(pool, carrier=carrier)
        run = Rebuild(
            event_log=event_log, generations=generations, figures=Figures(pool, carrier=carrier, space=NEXT_SPACE),
            days=settings.analytics_days, say=_say,
        )  # fmt: skip
        if dry_run:
            return await run.look()
        # A connection of its own: the lock must live as long as the run and end when the run dies.
        guard = await BoundedConnection.connect(
            settings.analytics_dsn.get_secret_value(), autocommit=True, connect_timeout=POSTGRES_CONNECT_S
        )
        stack.push_async_callback(guard.close)
        await generations.lock(guard)
        return await run.run(force=force)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _fail(problem: str, as_json: bool) -> Any:
    if as_json:
        sys.stdout.write(orjson.dumps({"error": problem}).decode() + "\n")
    sys.stderr.write(f"{NAME}: {problem}\n")
    raise SystemExit(1)


def _print(report: Report) -> None:
    for topic in report.topics:
        sys.stdout.write(f"{topic.topic}: {topic.records} records, retention has removed {topic.removed}\n")
    if report.first_day is None:
        sys.stdout.write("The event log has no records: the figures cannot be counted again.\n")
        return
    sys.stdout.write(
        f"Days from {report.first_day} on are counted again; {report.kept_days} days before it are kept.\n"
    )
    if not report.done:
        sys.stdout.write("Nothing was changed.\n")
        return
    if report.missing:
        sys.stdout.write(f"{report.missing} events that were counted before are not in the event log any more.\n")
    sys.stdout.write(f"{report.counted} events are counted; the new figures are served.\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m workers.analytics.rebuild", description="Count the figures of sales again from the event log."
    )
    parser.add_argument("--dry-run", action="store_true", help="show the effect, change nothing")
    parser.add_argument("--force", action="store_true", help="also if the event log lacks events that are counted")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
