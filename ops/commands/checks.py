"""`migrate`, `reconcile`: bring databases up to date, and prove the invariants."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer

from domain.topology import TOPICS
from migrations.files import Phase
from migrations.plan import Step
from migrations.plan import plan as plan_databases
from migrations.runner import databases_of, migrate_databases
from ops.commands.options import AsJson, StateDir, print_json
from ops.processes import run_module
from ops.target import resolve
from runtime.event_log import KafkaAccess
from runtime.process.settings import Settings


def migrate(
    post: Annotated[
        bool, typer.Option("--post", help="Also the files that contract the schema: no older release may run.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the files that each database lacks, with their locks; change nothing.")
    ] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Bring the catalogue, all shards and the analytics database to the newest schema; create the topics on Kafka.

    Without --post, the code of the last release still works afterwards. Repeating it changes nothing. A database that
    fails does not stop the others; run the command again to go on.
    """
    settings = resolve(state_dir, needs=["catalogue_dsn", "shard_dsns"]).settings
    targets = databases_of(settings)
    if plan:
        _print_plan(plan_databases(targets), as_json=as_json)
        return
    applied = migrate_databases(targets, until=Phase.POST if post else Phase.PRE) | _topics(settings)
    if as_json:
        print_json(applied)
        return
    for database, names in applied.items():
        print(f"{database}: {', '.join(names) if names else 'up to date'}")


def _print_plan(steps_of: dict[str, list[Step]], *, as_json: bool) -> None:
    if as_json:
        print_json({database: [asdict(step) for step in steps] for database, steps in steps_of.items()})
        return
    for database, steps in steps_of.items():
        print(f"{database}: {'lacks' if steps else 'up to date'}")
        for step in steps:
            how = "" if step.in_transaction else ", outside a transaction"
            print(f"  {step.name} ({step.phase}{how}): {', '.join(step.locks) or 'no lock on an existing table'}")


def _topics(settings: Settings) -> dict[str, list[str]]:
    """The topics that were created, where the carrier needs them."""
    if not settings.event_log_url.startswith("kafka://"):
        return {}
    # Here: other commands do not load the client.
    from runtime.event_log.kafka_topics import TopicSettings, create_topics

    created = create_topics(settings.event_log_url, TOPICS, KafkaAccess.of(settings), TopicSettings.of(settings))
    return {"event_log": asyncio.run(created)}


def reconcile(
    sale: Annotated[UUID | None, typer.Option(help="Check only this sale.")] = None,
    wait_s: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds to wait until accepted orders are stored.")
    ] = 60.0,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Prove invariants A (no oversell), B (nothing lost) and G (every unit of money is accounted for).

    Exit status 1 if one is violated or not proved in time.
    """
    target = resolve(state_dir, needs=["redis_url", "catalogue_dsn", "shard_dsns"])
    arguments = ["--once", "--wait-s", str(wait_s)]
    if sale is not None:
        arguments += ["--sale", str(sale)]
    if as_json:
        arguments.append("--json")
    raise typer.Exit(run_module("workers.reconciler", arguments, target))
