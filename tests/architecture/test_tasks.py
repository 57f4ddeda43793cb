"""No background task outside of `runtime.process.supervision`, but for those that their own code waits for.

A task that nothing waits for ends in silence: its exception appears when it is collected, or never, and the process
stays ready without it.
"""

from __future__ import annotations

import ast

from tests.architecture.sources import package_of, place, tracked

# Tests, and the harnesses of measurements: their tasks end with them.
NOT_CHECKED = {"tests", "perf"}
MAKES_TASKS = {"create_task", "ensure_future", "TaskGroup", "run_coroutine_threadsafe"}
# File -> (number of places, how the end of its tasks is noticed).
ALLOWED = {
    "faults/mailboxes.py": (1, "a part of a drill, which takes its exception at the end"),
    "runtime/process/supervision.py": (2, "the mechanism itself"),
    "runtime/process/service.py": (2, "the process's main work, which `_serve` waits for, and its signal"),
    "runtime/redis/renewals.py": (1, "an exception of the renewals loses all leases (`_ended`)"),
    "backoffice/web/server.py": (1, "the process's main work: it catches everything and ends the process"),
    "backoffice/web/admission/connection.py": (2, "`_write_stream` waits for both and raises what ended the writing"),
    "backoffice/caching/cache.py": (1, "readers wait for the read; its exception is theirs"),
    "backoffice/figures/service.py": (1, "the sampler catches everything, and runs only while there are viewers"),
    "edge/cluster_link.py": (1, "`run` raises what ended a link, at each round"),
    "edge/app.py": (1, "the drain: the main process kills a worker that does not end in time"),
    "edge/direct_door.py": (1, "one request: the application and `_finish` answer and log every exception"),
    "edge/settlements.py": (1, "events wait for their batch; `_work` answers each of them, also when it ends"),
    "edge/sale_reads.py": (1, "requests wait for the read; its exception is theirs"),
    "edge/sale_directory.py": (1, "callers wait for each read; its exception is theirs (`_read_pending`)"),
    "runtime/event_log/kafka_reader.py": (1, "`_fetched` takes each fetch's result, `_end_fetches` ends the others"),
    "runtime/queue/rabbitmq_subscription.py": (1, "one frame; ends with its channel, whose end has the same effect"),
    "workers/relay/session.py": (4, "`run` waits for all, and raises what ended one"),
    "workers/notifications/push_sender.py": (2, "a task group: `run` ends with the first that fails"),
    "workers/webhooks/work.py": (3, "a task group: the tenure ends with the first that fails"),
    "workers/rebalancer/director.py": (2, "waits for events, which the sleep ends"),
    "workers/webhooks/sender.py": (4, "a task group: `run` ends with the first that fails"),
    "workers/dispatcher/group.py": (1, "`_settle` takes each delivery's result"),
    "faults/proxy.py": (4, "a task group, which ends its connection; a call whose result the caller takes"),
    "faults/buyers.py": (2, "the end of the drill takes each buyer's result"),
    "faults/till.py": (1, "the end of the drill takes each payer's result"),
    "faults/overload_faults.py": (1, "the drill awaits it"),
    "faults/hostile_faults.py": (1, "the drill awaits it"),
}


def _places() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in tracked():
        if path.suffix != ".py" or package_of(path) in NOT_CHECKED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in MAKES_TASKS:
                assert isinstance(node, ast.expr)
                where = place(path, node.lineno)
                found.setdefault(where.rpartition(":")[0], []).append(where)
    return found


def test_tasks_are_started_under_watch() -> None:
    """Start a background task by `TaskSupervisor.start`, parts of one by `together`, or say here who waits for it."""
    found = _places()
    bare = [where for file, places in found.items() if len(places) > ALLOWED.get(file, (0, ""))[0] for where in places]
    assert not bare


def test_the_list_of_exceptions_is_not_longer_than_needed() -> None:
    found = _places()
    stale = {file: count for file, (count, _) in ALLOWED.items() if len(found.get(file, [])) != count}
    assert not stale
