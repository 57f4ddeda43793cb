"""`up`, `down`, `status`: start, stop and inspect a stack."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from devstack.children import alive
from devstack.data_tier import data_tier, in_words
from devstack.full import STACK_VARIABLE, StackKind
from devstack.launch import start_detached, stop
from devstack.packages import install_missing, needed
from devstack.plan import EVENT_LOG_VARIABLE, QUEUE_VARIABLE, EventLogKind, QueueKind
from devstack.program import responds
from devstack.state import StateFolder
from devstack.supervisor import supervise
from ops.commands.options import AsJson, StateDir, print_json
from ops.stack_file import Stack, StackError

NOT_UP = 3


def up(
    stack: Annotated[
        StackKind,
        typer.Option(
            help="embedded: one Redis and one PostgreSQL. full: a primary with a standby and a PgBouncer for the catalogue "
            "and each shard, a Redis with a replica, a separate cache, RabbitMQ, Kafka; installs missing Debian packages."
        ),
    ] = StackKind.EMBEDDED,
    event_log: Annotated[
        EventLogKind | None,
        typer.Option(
            help="Carrier of the event log; kafka for a full stack, otherwise redis. kafka: a real broker; needs Java 17, "
            "and Maven for its first start."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when all processes are ready; stop with `flashsale down`.")
    ] = False,
    edge_port: Annotated[
        int, typer.Option(min=0, max=65535, envvar="FLASHSALE_EDGE_PORT", help="Port of the edge, 0: a free one.")
    ] = 8080,
    backoffice_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, envvar="FLASHSALE_BACKOFFICE_PORT", help="Port of the backoffice, 0: a free one."
        ),
    ] = 8081,
    queue: Annotated[
        QueueKind | None,
        typer.Option(
            envvar=QUEUE_VARIABLE,
            help="Carrier of the work queues; rabbitmq for a full stack, otherwise redis. "
            "rabbitmq: a server of the distribution's package. "
            "Messages of the other carrier stay where they are: stop the stack before you change it.",
        ),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Start a stack on this machine: its servers and all processes, supervised. Data stays between runs.

    Processes get the FLASHSALE_* settings of the environment, except addresses.
    """
    is_full = stack is StackKind.FULL
    queue = queue or (QueueKind.RABBITMQ if is_full else QueueKind.REDIS)
    event_log = event_log or (EventLogKind.KAFKA if is_full else EventLogKind.REDIS)
    folder = StateFolder.at(state_dir)
    # The supervisor reads them, in this process or in its own.
    os.environ[STACK_VARIABLE] = stack
    os.environ[QUEUE_VARIABLE] = queue
    os.environ[EVENT_LOG_VARIABLE] = event_log
    is_up = folder.supervisor_pid() is not None
    if is_full and not is_up:
        install_missing(
            needed(queue_is_rabbitmq=queue is QueueKind.RABBITMQ, event_log_is_kafka=event_log is EventLogKind.KAFKA),
            lambda line: print(line, flush=True),
        )
    if is_up:
        running = folder.read_stack()
        if running is None:
            raise StackError(f"a stack is starting or stopping in {folder.path}: try again in a few seconds")
        print("The stack is up already.")
        print_addresses(running, folder)
    elif detach:
        print_addresses(start_detached(folder, edge_port=edge_port, backoffice_port=backoffice_port), folder)
    else:
        status = supervise(
            folder, edge_port=edge_port, backoffice_port=backoffice_port,
            on_ready=lambda ready: print_addresses(ready, folder),
        )  # fmt: skip
        raise typer.Exit(status)


def down(
    destroy: Annotated[bool, typer.Option("--destroy", help="Also remove its data, keys and logs.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Stop the stack, after accepted orders have been stored. Data stays.

    Order: the edge and the backoffice, then the workers, then the servers.
    """
    folder = StateFolder.at(state_dir)
    stopped = stop(folder)
    print("The stack is down." if stopped else "No stack was up.")
    if destroy:
        folder.destroy()
        print(f"Removed {folder.path}.")


def status(as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Show the stack's processes and whether they are ready; of a full stack also roles, lags and connections.

    Exit status 0: all are ready; 1: one is not ready; 3: no stack is up.
    """
    folder = StateFolder.at(state_dir)
    stack = folder.read_stack()
    if stack is None:
        if as_json:
            print_json({"up": False})
        else:
            print(f"No stack is up in {folder.path}.")
        raise typer.Exit(NOT_UP)
    ready = _readiness(stack)
    tier = data_tier(stack)
    if as_json:
        print_json(
            {
                "up": True,
                "edge_url": stack.edge_url,
                "edge_direct_url": stack.edge_direct_url,
                "backoffice_url": stack.backoffice_url,
                "supervisor": stack.supervisor,
                "processes": {
                    name: {
                        "pid": pid,
                        "ready": ready[name],
                        "restarting": stack.restarting.get(name),
                        "metrics_url": _metrics_url(stack, name),
                        **({"data": tier[name]} if name in tier else {}),
                    }
                    for name, pid in stack.processes.items()
                },
            }
        )
    else:
        print_addresses(stack, folder)
        width = max(map(len, stack.processes))
        for name, pid in stack.processes.items():
            state = "ready" if ready[name] else _why_not_ready(stack, name)
            figures = f"  {tier[name].get('role', ''):<8} {in_words(tier[name])}" if name in tier else ""
            print(f"  {name:<{width}} {pid:>8}  {state}{figures}")
    if not all(ready.values()):
        raise typer.Exit(1)


def _why_not_ready(stack: Stack, name: str) -> str:
    if (restart := stack.restarting.get(name)) is None:
        return "NOT READY"
    return f"NOT RUNNING: restart {restart['restarts_in_a_row']} in a row at {restart['at']}; see its log"


def _metrics_url(stack: Stack, name: str) -> str | None:
    return f"{stack.metrics[name]}/metrics" if name in stack.metrics else None


def _readiness(stack: Stack) -> dict[str, bool]:
    """Ask all processes at once, so that several that hang cost the time of one."""

    def is_ready(name: str) -> bool:
        if not alive(stack.processes[name]):
            return False
        return name not in stack.metrics or responds(f"{stack.metrics[name]}/readyz")

    with ThreadPoolExecutor(max_workers=16) as pool:
        return dict(zip(stack.processes, pool.map(is_ready, stack.processes), strict=True))


def print_addresses(stack: Stack, folder: StateFolder) -> None:
    """Print the addresses and the administrator's login."""
    print(f"edge        {stack.edge_url}")
    if stack.edge_direct_url:
        print(f"  direct    {stack.edge_direct_url}  (HTTP/1.1, the fastest way to order)")
    print(f"backoffice  {stack.backoffice_url}")
    print(f"admin       {stack.admin['email']}  {stack.admin['password']}")
    print(f"mails       {stack.mail_folder}")
    if stack.payment_url:
        print(f"payments    {stack.payment_url}  (simulated: no money moves)")
    print(f"more in     {folder.stack_file}", flush=True)
