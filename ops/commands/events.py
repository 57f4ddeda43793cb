"""`events`: look at the events of the log, have a consumer read them again, print their formats."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from domain.events import EventMalformed, event_type, read_event
from domain.schemas import EVENT_TYPES, FAMILIES, Family
from ops.audit import recorded
from ops.commands.options import AsJson, StateDir, print_json
from ops.commands.times import parse_since
from ops.events import PARTITIONS, Step, TopicRecord, follow, newest, plan_replay, replay
from ops.target import resolve
from runtime.audit import Action, object_name
from runtime.event_log import EventLog, EventLogUnavailable, LogRecord, event_log_of
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings

NEEDS: Final = ("event_log_url",)
TOPIC_NAMES: Final = tuple(PARTITIONS)

app = typer.Typer(no_args_is_help=True, help="Events of the event log: tail, replay, schema.")


@app.command()
def tail(
    topic: Annotated[list[str] | None, typer.Option(help="Only this topic; may be repeated.")] = None,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="Only events of this type; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="Print the newest events, at most so many.")] = 20,
    keep_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on with events as they come.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Print the newest events, oldest first. Changes nothing, and takes no event from its consumers."""
    topics = [_topic(name) for name in topic or TOPIC_NAMES]
    for name in type_ or ():
        if name not in EVENT_TYPES:
            raise OperatorError(f"there is no event type {name}: see flashsale events schema")
    settings = resolve(state_dir, needs=NEEDS).settings

    def wanted(record: LogRecord) -> bool:
        return not type_ or event_type(record.headers) in type_

    async def work(log: EventLog) -> None:
        found, ends = await newest(log, topics, wanted, limit=max(1, limit), everything=bool(type_))
        for one in found[len(found) - min(limit, len(found)) :]:
            _print(one, as_json=as_json)
        if keep_on:
            async for one in follow(log, ends):
                if wanted(one.record):
                    _print(one, as_json=as_json)

    try:
        _with_log(settings, work)
    except KeyboardInterrupt:
        return  # the way to end --follow


@app.command("replay")
def replay_events(
    topic: Annotated[str, typer.Option(help="The topic to read again.")],
    group: Annotated[str, typer.Option(help="The consumer group that reads it again, such as announcer.email.")],
    since: Annotated[str | None, typer.Option(help="From this time on: 90m, 24h, 7d, or 2026-11-28T00:00:00Z.")] = None,
    offset: Annotated[int | None, typer.Option(min=1, help="From this offset of each partition on.")] = None,
    partition: Annotated[list[int] | None, typer.Option(help="Only this partition; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the effect, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Have a group read records again: set its positions back to a time or an offset.

    Consumers drop events that they know, so a replay has an effect only where one was lost. Stop the consumers of the
    group before: one that runs goes on from the position that it has in memory. The audit log keeps an entry.
    """
    if (since is None) == (offset is None):
        raise OperatorError("name the place to read from: either --since or --offset")
    partitions = sorted(set(partition or range(PARTITIONS[_topic(topic)])))
    if outside := [number for number in partitions if not 0 <= number < PARTITIONS[topic]]:
        raise OperatorError(f"{topic} has the partitions 0 to {PARTITIONS[topic] - 1}, not {outside[0]}")
    since_ms = None if since is None else int(parse_since(since, now=datetime.now(UTC)).timestamp() * 1000)
    settings = resolve(state_dir, needs=(*NEEDS, "catalogue_dsn")).settings
    steps: list[Step] = []

    async def plan(log: EventLog) -> None:
        steps.extend(
            await plan_replay(log, topic=topic, group=group, since_ms=since_ms, offset=offset, partitions=partitions)
        )

    _with_log(settings, plan)
    count = sum(step.records for step in steps)
    if steps and not dry_run:
        if not yes and not _confirmed(f"{group} reads {count} records of {topic} again. Go on?"):
            raise OperatorError("nothing was changed")
        with recorded(settings.catalogue_dsn, Action.EVENTS_REPLAY, object_name("events", f"{topic}/{group}")) as after:
            _with_log(settings, lambda log: replay(log, topic=topic, group=group, steps=steps))
            after |= {"positions": [f"{step.partition}: {step.position} to {step.to}" for step in steps]}
    _report_replay(steps, topic=topic, group=group, done=not dry_run, as_json=as_json)


@app.command()
def schema(
    type_: Annotated[str | None, typer.Argument(metavar="[TYPE]", help="An event type, such as order.paid.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the event types, or print the JSON Schema of the data of one type. Needs no stack."""
    if type_ is not None:
        family = next((family for family in FAMILIES.values() if type_ in family.types), None)
        if family is None:
            raise OperatorError(f"there is no event type {type_}: see flashsale events schema")
        print_json(family.document)
        return
    if as_json:
        print_json([_type_document(family, name) for family in FAMILIES.values() for name in family.types])
        return
    for family in FAMILIES.values():
        print(f"{family.topic}, keyed by {family.key}, {family.urn}")
        for name, meaning in family.types.items():
            print(f"  {name:<20} {meaning}")


def _topic(name: str) -> str:
    if name not in PARTITIONS:
        raise OperatorError(f"there is no topic {name}: use one of {', '.join(TOPIC_NAMES)}")
    return name


def _with_log(settings: Settings, work: Callable[[EventLog], Any]) -> None:
    async def opened() -> None:
        log = event_log_of(settings)
        try:
            await work(log)
        finally:
            await log.close()

    try:
        asyncio.run(opened())
    except EventLogUnavailable as error:
        raise OperatorError(f"the event log does not answer: {error}") from error


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise OperatorError(f"{question} Answer with --yes, or look first with --dry-run")
    return typer.confirm(question)


def _print(one: TopicRecord, *, as_json: bool) -> None:
    """A line for each record, also for one that is no event."""
    record = one.record
    place = {"topic": one.topic, "partition": record.partition, "offset": record.offset, "key": record.key}
    try:
        event = read_event(record.headers, record.value)
    except EventMalformed as error:
        problem = record.problem or str(error)
        if as_json:
            _line({**place, "problem": problem})
        else:
            print(f"{_time(record.at_ms)}  {one.topic}/{record.partition}:{record.offset}  not an event: {problem}")
        return
    if as_json:
        traced = {name: text for name, text in record.headers.items() if name == "traceparent"}
        _line(
            {
                **place, "id": event.id, "type": event.type, "source": event.source, "subject": event.subject,
                "time": record.headers["ce_time"], "schema": event.schema, "version": event.version, **traced,
                "data": event.data,
            }
        )  # fmt: skip
        return
    place_text = f"{one.topic}/{record.partition}:{record.offset}"
    print(f"{_time(event.time_ms)}  {place_text:<18}  {event.type:<18}  {event.subject}  v{event.version}", flush=True)


def _line(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


def _report_replay(steps: list[Step], *, topic: str, group: str, done: bool, as_json: bool) -> None:
    if as_json:
        listed = [
            {"partition": step.partition, "position": step.position, "to": step.to, "records": step.records}
            for step in steps
        ]
        print_json({"topic": topic, "group": group, "done": done, "partitions": listed})
        return
    for step in steps:
        print(f"{topic}/{step.partition}: from {step.position} back to {step.to}, {step.records} records")
    if not steps:
        print(f"{group} has read nothing of {topic} from there on: nothing to replay. Check the name of the group.")
    elif done:
        print(f"{group} reads them again as soon as its consumer starts.")
    else:
        print("Nothing was changed.")


def _type_document(family: Family, name: str) -> dict[str, Any]:
    return {
        "type": name, "topic": family.topic, "key": family.key, "schema": family.urn, "meaning": family.types[name],
    }  # fmt: skip


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
