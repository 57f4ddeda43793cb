"""The environment of faults: an embedded stack, proxies between its processes and servers, and tools to harm both."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import redis
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from devstack import rabbitmq
from devstack.children import alive, free_port, spawn
from devstack.demo.rehearsal import own_stack
from devstack.kafka import answers
from devstack.plan import QUEUE_VARIABLE, RESERVATION_VARIABLE, SIMULATOR, QueueKind
from devstack.program import responds
from devstack.state import StateFolder
from faults.conditions import Door, Needs, NotFired, NotHere
from faults.proxy import FaultProxy
from faults.small_disk import SmallDisk, small_disk
from faults.variation import Variation
from ops.shop import Shop
from ops.stack_file import PROJECT, Stack
from ops.tokens import mint_many
from runtime.process.settings import load_settings, overrule
from runtime.redis.client import redis_client
from runtime.tokens.keys import load_token_keys

USERS = 400
TOKEN_S = 4 * 3600  # longer than a whole run
WAIT_S_MAX = 30.0
SMALL_DISK_MB = 24
STATE_DISK_MB = 2048
# Short leases: a crashed process's leases expire well within the ten seconds that recovery may take.
# Short waits of the sweep of payments, for the same reason.
_LIMITS = {
    "edge_workers": "2", "lease_ms": "1500", "log_level": "INFO",
    "payment_interrupted_s": "6", "payment_unconfirmed_s": "6", "payment_lost_s": "15",
}  # fmt: skip
# Process -> the servers that it reaches through proxies. The payment provider reaches the edge for its webhooks.
ROUTES = {
    "edge": ("redis", "postgres", "provider"),
    "backoffice": ("redis",),
    "relay-0": ("redis", "queue"),
    "shard-writer-0": ("redis", "postgres", "queue"),
    "dispatcher-0": ("redis", "postgres", "kafka"),
    "expiry-0": ("redis", "postgres"),
    "payments-0": ("redis", "postgres", "provider"),
    "notifications-0": ("mail",),
    "announcer-0": ("kafka",),
    "analytics-0": ("postgres",),
    SIMULATOR: ("edge",),
}


@dataclass(slots=True)
class Stage:
    """A stack that is up. `proxies` by (process, server). `redis_disk`, `state_disk`: as `Needs` asks for them."""

    folder: StateFolder
    proxies: dict[tuple[str, str], FaultProxy]
    users: list[tuple[UUID, str]]
    redis_disk: SmallDisk | None = None
    state_disk: SmallDisk | None = None
    door: Door = Door.BOTH
    sales_made: int = 0
    accounts_made: int = 0  # of the first users
    _extras: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _misbehaving: bool = False

    @property
    def stack(self) -> Stack:
        """The current content of `stack.json`."""
        return self.folder.require_stack()

    @property
    def edge_urls(self) -> list[str]:
        """The doors of the edge that buyers use."""
        stack = self.stack
        doors = {Door.GRANIAN: stack.edge_url, Door.DIRECT: stack.edge_direct_url}
        return [url for door, url in doors.items() if url is not None and self.door in (door, Door.BOTH)]

    def staff(self) -> Shop:
        """The backoffice with a fresh login of the administrator: a token may end before the stage does."""
        stack = self.stack
        return Shop.log_in(stack.backoffice_url, **stack.admin)

    def proxy(self, process: str, server: str = "redis") -> FaultProxy:
        """The proxy between a process and a server."""
        return self.proxies[process, server]

    # processes

    def pid(self, name: str) -> int:
        """Pid of a process of the stack, from `stack.json`."""
        return self.stack.processes[name]

    def edge_workers(self) -> list[int]:
        """Pids of the edge's serving children; empty while the main process is gone."""
        parent = self.pid("edge")
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
        except FileNotFoundError:
            return []
        workers = []
        for pid in map(int, children):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if b"spawn_main" in command and alive(pid):
                workers.append(pid)
        return workers

    async def replaced(self, name: str, old: int) -> int:
        """Wait until an ended process is ready again; returns its new pid. NotFired if it takes too long."""

        def is_replaced() -> bool:
            stack = self.folder.read_stack()
            pid = stack.processes.get(name, old) if stack is not None else old
            return pid != old and alive(pid)

        await self.until(is_replaced, f"{name} was not restarted")
        if name == "redis":
            await self.until(self._redis_answers, "Redis did not answer again")
        if name == "postgres":
            await self.until(self._postgres_answers, "PostgreSQL did not answer again")
        if name == "kafka":
            await self.until(self.kafka_answers, "Kafka did not answer again")
        if name in self.stack.metrics:
            await self.ready_again(name)
        return self.pid(name)

    def troubles(self, name: str) -> dict[str, str]:
        """Checks of a worker's /readyz that do not hold, with their details; empty while it is ready."""
        try:
            answer = httpx.get(f"{self.stack.metrics[name]}/readyz", timeout=5)
        except httpx.TransportError:
            return {}
        return {check: found["detail"] for check, found in answer.json()["checks"].items() if not found["ok"]}

    async def metric(self, process: str, name: str, **labels: str) -> float:
        """A metric of a worker, summed over the other labels."""
        text = (await asyncio.to_thread(httpx.get, f"{self.stack.metrics[process]}/metrics", timeout=5)).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def ready_again(self, name: str) -> None:
        """Wait until a worker is ready. NotFired if it takes too long."""
        await self.until(lambda: responds(f"{self.stack.metrics[name]}/readyz"), f"{name} did not become ready again")

    def _redis_answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.stack.redis_url, socket_timeout=2) as client:
                client.ping()
        except redis.RedisError:
            return False
        return True

    def kafka_answers(self) -> bool:
        """Whether the broker of a stack with Kafka answers."""
        return answers(int(self.stack.event_log_url.rpartition(":")[2]))

    def _postgres_answers(self) -> bool:
        try:
            psycopg.connect(self.maintenance_dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    async def until(self, condition: Callable[[], bool], otherwise: str, *, within_s: float = WAIT_S_MAX) -> None:
        """Return when the condition holds. NotFired if it does not within the time. Calls the condition in a thread."""
        deadline = time.monotonic() + within_s
        while not await asyncio.to_thread(condition):
            if time.monotonic() > deadline:
                raise NotFired(otherwise)
            await asyncio.sleep(0.03)

    def start_extra(self, module: str, name: str, *, environ: dict[str, str] | None = None, **settings: str) -> int:
        """Start a process beside the supervised ones, such as a second relay; returns its pid. It ends with the stage.

        `settings` as in `Needs.limits`; `environ` is added unchanged.
        """
        ours = {f"FLASHSALE_{key.upper()}": value for key, value in {**_LIMITS, **settings}.items()}
        env = {**overrule(os.environ, {**self.folder.settings_env(self.stack), **ours}), **(environ or {})}
        process = spawn(
            [sys.executable, "-m", module], env=env, log=self.folder.log(name), cwd=PROJECT,
            orphan_signal=signal.SIGKILL,
        )  # fmt: skip
        self._extras.append(process)
        return process.pid

    async def end_extra(self, pid: int) -> None:
        """Send SIGTERM to a process of `start_extra` and wait for its end. NotFired if it takes too long."""
        os.kill(pid, signal.SIGTERM)
        await self.until(lambda: not alive(pid), "an extra process did not end")

    def stop_extras(self) -> None:
        """End the processes of `start_extra`."""
        for process in self._extras:
            process.kill()
            process.wait()
        self._extras.clear()

    # servers, without the proxies

    async def provider(self, **behaviour: object) -> dict[str, Any]:
        """Change the behaviour of the payment provider until `calm`; returns its state, as `provider_state`."""
        self._misbehaving = True
        return await asyncio.to_thread(self._control, "POST", behaviour)

    async def provider_state(self) -> dict[str, Any]:
        """The behaviour, the sizes of the books, and the webhooks sent by the status of their answers."""
        return await asyncio.to_thread(self._control, "GET")

    def _control(self, method: str, behaviour: dict[str, object] | None = None) -> dict[str, Any]:
        stack = self.stack
        if stack.payment_url is None:
            raise NotHere("the stack has no payment simulator")
        headers = {"Authorization": f"Bearer {stack.payment_secret}"}
        answer = httpx.request(method, f"{stack.payment_url}/v1/control", json=behaviour, headers=headers, timeout=5)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[Redis]:
        """A client of the reservation Redis."""
        client = redis_client(self.stack.redis_url)
        try:
            yield client
        finally:
            await client.aclose()

    async def sql(self, dsn: str, query: str, *arguments: object) -> list[tuple[object, ...]]:
        """Run a statement in a transaction of its own; returns its rows."""
        async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5, autocommit=True) as connection:
            cursor = await connection.execute(query.encode(), arguments or None)
            return [tuple(row) for row in await cursor.fetchall()] if cursor.description else []

    @property
    def maintenance_dsn(self) -> str:
        """Connection string of the server's maintenance database."""
        return self.stack.catalogue_dsn.rpartition("/")[0] + "/postgres"

    def count_anew(self) -> None:
        """Reset the proxies' counters: a drill's proof must not include earlier drills."""
        for proxy in self.proxies.values():
            proxy.counted.clear()

    def calm(self) -> None:
        """End all harm: reset proxies and the payment provider, end extra processes, continue stopped ones."""
        for proxy in self.proxies.values():
            proxy.clear()
        for process in self._extras:
            process.send_signal(signal.SIGCONT)
        self.stop_extras()
        stack = self.folder.read_stack()
        for pid in stack.processes.values() if stack is not None else ():
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue  # it is being restarted
        if stack is not None and self._misbehaving:
            self._control("DELETE")
            self._misbehaving = False


@contextmanager
def staged(needs: Needs, say: Callable[[str], None], *, door: Door = Door.BOTH) -> Iterator[Stage]:
    """A stage while the block runs. NotHere if the machine cannot provide it."""
    if needs.queue == QueueKind.RABBITMQ and rabbitmq.programs_folder() is None:
        raise NotHere(rabbitmq.HOW_TO_INSTALL)
    with ExitStack() as stack:
        redis_disk = stack.enter_context(small_disk(SMALL_DISK_MB, mode=0o700)) if needs.small_disk else None
        # Others may pass through its root: as root, PostgreSQL runs as another user, beside the stack's folder.
        state_disk = stack.enter_context(small_disk(STATE_DISK_MB, mode=0o711)) if needs.state_disk else None
        ports = {server: free_port() for server in ("redis", "postgres", "queue", "mail", "provider", "edge", "kafka")}
        doors = {process: free_port() for process, servers in ROUTES.items() if "kafka" in servers}
        proxies = {
            (process, server): stack.enter_context(FaultProxy(doors[process] if server == "kafka" else ports[server]))
            for process, servers in ROUTES.items()
            for server in servers
        }
        variation = Variation(
            limits={**_LIMITS, **needs.limits},
            launchers=needs.launchers,
            routes={
                process: {server: proxies[process, server].port for server in servers}
                for process, servers in ROUTES.items()
            },
            ports=ports,
            event_log=needs.event_log,
            kafka_doors=doors,
            redis_folder=str(redis_disk.path) if redis_disk else "",
        )
        _, folder = stack.enter_context(
            own_stack(
                say,
                name="faults",
                supervisor_module="faults.variation",
                prepare=variation.write,
                parent=state_disk.path if state_disk else None,
                settings={QUEUE_VARIABLE: needs.queue, RESERVATION_VARIABLE: needs.reservation},
            )
        )
        users = [
            (UUID(user), token)
            for user, token in mint_many(
                load_token_keys(folder.token_keys), count=USERS, issuer=load_settings().token_issuer, ttl_s=TOKEN_S
            )
        ]
        stage = Stage(folder, proxies, users, redis_disk, state_disk, door)
        try:
            yield stage
        finally:
            stage.calm()


def keep_logs(folder: StateFolder) -> Path:
    """Copy the logs to a folder that stays after the stage; returns the folder."""
    kept = Path(tempfile.gettempdir()) / f"flashsale-faults-logs-{secrets.token_hex(4)}"
    shutil.copytree(folder.logs, kept)
    return kept
