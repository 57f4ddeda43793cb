"""The parts of an embedded stack: its servers, its processes, their environment, and their readiness checks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from devstack import rabbitmq
from devstack.children import free_port, port_is_free
from devstack.kafka import KafkaServer
from devstack.program import Program
from devstack.rabbitmq import Epmd, RabbitServer
from devstack.redis_cluster import RedisCluster
from devstack.servers import PostgresServer, RedisServer
from devstack.state import STATE_VARIABLE, StateFolder
from migrations.runner import migrate
from ops.stack_file import Stack, StackError
from runtime.process.settings import PREFIX, Durability, Settings, load_settings, overrule
from runtime.tokens.keys import create_staff_key, create_token_keys
from runtime.tokens.vapid import VapidKey, create_vapid_key, load_vapid_key

SIMULATOR = "payment-simulator"
RABBITMQ = ("epmd", "rabbitmq")  # of a stack with this queue
KAFKA = "kafka"  # of a stack with this event log
CLUSTER_NODES = tuple(f"redis-node-{number}" for number in range(6))  # of a stack with a Redis Cluster
# In the environment of a supervisor.
QUEUE_VARIABLE = "DEVSTACK_QUEUE"  # a QueueKind
EVENT_LOG_VARIABLE = "DEVSTACK_EVENT_LOG"  # an EventLogKind
RESERVATION_VARIABLE = "DEVSTACK_RESERVATION"  # a ReservationKind
# Worker processes by their name in `stack.json`, in the order in which an order passes them.
WORKERS = {
    "relay-0": "workers.relay",
    "shard-writer-0": "workers.shard_writer",
    "dispatcher-0": "workers.dispatcher",
    "expiry-0": "workers.expiry",
    "reconciler": "workers.reconciler",
    "recovery": "workers.recovery",
    "rejecter": "workers.rejecter",
    "announcer-0": "workers.announcer",
    "notifications-0": "workers.notifications",
    "payments-0": "workers.payments",
    "analytics-0": "workers.analytics",
    "webhooks-0": "workers.webhooks",
}
# Only these modules speak to the payment provider, and no other process gets its secrets.
_PAY = ("edge", "workers.payments")
_PAYMENT_SECRETS = ("payment_api_key", "payment_webhook_secrets")
_KAFKA_PREFIX = f"{PREFIX}KAFKA_"
_WEBHOOK_SECRETS = {"FLASHSALE_WEBHOOK_KEY", "FLASHSALE_WEBHOOK_KEY_FILE"}  # for backoffice and webhook worker only
_VAPID_SECRETS = {"FLASHSALE_VAPID_KEY", "FLASHSALE_VAPID_KEY_FILE"}  # for notification workers only


class QueueKind(StrEnum):
    """Carriers of the work queues."""

    REDIS = "redis"
    RABBITMQ = "rabbitmq"


class ReservationKind(StrEnum):
    """Where the lanes are. Cache, embedded queue and event log are in one Redis of their own beside a cluster."""

    REDIS = "redis"
    CLUSTER = "cluster"


class EventLogKind(StrEnum):
    """Carriers of the event log in an embedded stack."""

    REDIS = "redis"
    KAFKA = "kafka"


@dataclass(slots=True)
class Plan:
    """An embedded stack in a folder. Each run chooses new ports for the servers and for /metrics."""

    folder: StateFolder
    edge_port: int
    backoffice_port: int
    environ: Mapping[str, str] = field(repr=False)
    redis: RedisServer = field(init=False)
    redis_cluster: RedisCluster | None = field(init=False)  # None: the lanes are in `redis`
    postgres: PostgresServer = field(init=False)
    kafka: KafkaServer | None = field(init=False)  # None: the event log is on Redis Streams
    settings: Settings = field(init=False)
    edge_direct_port: int = field(init=False)
    metrics_ports: dict[str, int] = field(init=False)
    mail_port: int = field(init=False)
    payment_port: int | None = field(init=False)  # None: the caller chose another payment provider
    epmd: Epmd = field(init=False)
    rabbitmq: RabbitServer | None = field(init=False)  # None: the queues are Redis Streams

    def __post_init__(self) -> None:
        """Choose ports and check settings. Raises StackError for a port in use, SettingsError."""
        self.edge_port = _listening_port(self.edge_port, "edge")
        self.backoffice_port = _listening_port(self.backoffice_port, "backoffice")
        self.redis = RedisServer(self.folder.data / "redis", password=self.folder.secret("redis_password"))
        kind = EventLogKind(self.environ.get(EVENT_LOG_VARIABLE, EventLogKind.REDIS))
        self.kafka = KafkaServer(self.folder.data / "kafka") if kind is EventLogKind.KAFKA else None
        # Reports all problems of the caller's settings before anything starts.
        self.settings = load_settings(self._callers_settings())
        self._choose_databases()
        self.edge_direct_port = self._choose_direct_port()
        self.metrics_ports = {name: free_port() for name in WORKERS}
        self.mail_port = free_port()
        chosen = self.settings.model_fields_set
        theirs = "payment_provider" in chosen and (
            self.settings.payment_provider != "simulated" or "payment_url" in chosen
        )
        self.payment_port = None if theirs else free_port()
        self.redis_cluster = self._choose_reservation()
        self.epmd = Epmd(self.folder.data / "rabbitmq")
        self.rabbitmq = self._choose_queue()

    def _choose_databases(self) -> None:
        self.postgres = replace(self.folder.postgres, port=free_port())

    def _choose_reservation(self) -> RedisCluster | None:
        if ReservationKind(self.environ.get(RESERVATION_VARIABLE) or ReservationKind.REDIS) is ReservationKind.REDIS:
            return None
        replicated = self.settings.durability is Durability.REPLICATED
        return RedisCluster(
            self.folder.data / "redis-cluster",
            extra=("--min-replicas-to-write", "1") if replicated else (),
            password=self.folder.secret("redis_password"),
            supervised=True,
        )

    def _choose_queue(self) -> RabbitServer | None:
        kind = QueueKind(self.environ.get(QUEUE_VARIABLE) or QueueKind.REDIS)
        if kind is QueueKind.REDIS:
            return None
        if rabbitmq.programs_folder() is None:
            raise StackError(rabbitmq.HOW_TO_INSTALL)
        return RabbitServer(
            self.folder.data / "rabbitmq", epmd_port=self.epmd.port, password=self.folder.secret("rabbitmq_password")
        )

    def _choose_direct_port(self) -> int:
        """The caller's choice, which may be 0 for no direct door; without one, a free port."""
        if "edge_direct_port" not in self.settings.model_fields_set:
            return free_port()
        port = self.settings.edge_direct_port
        if port and not port_is_free(port):
            raise StackError(f"port {port} is in use: choose another with FLASHSALE_EDGE_DIRECT_PORT, or 0 for none")
        return port

    def _callers_settings(self) -> dict[str, str]:
        """Without those of a Kafka elsewhere: the stack's own has neither login nor encryption."""
        return {
            name: value
            for name, value in self.environ.items()
            if name.startswith(PREFIX) and not name.startswith(_KAFKA_PREFIX)
        }

    def make_secrets(self) -> None:
        """Create the keys of the folder, unless it has them."""
        create_token_keys(self.folder.token_keys)
        create_staff_key(self.folder.staff_key)
        create_vapid_key(self.folder.vapid_key)

    @property
    def database_names(self) -> list[str]:
        """Names of the databases: the catalogue, then the shards in order, then analytics."""
        return ["catalogue", *(f"shard_{shard}" for shard in range(self.settings.shards)), "analytics"]

    def _base_env(self) -> dict[str, str]:
        passed_on = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
        return {
            **{name: self.environ[name] for name in passed_on if name in self.environ},
            "TZ": "UTC",
            STATE_VARIABLE: str(self.folder.path),
        }

    def settings_env(self) -> dict[str, str]:
        """FLASHSALE_* of all processes: the caller's, with this stack's addresses in place. Needs the databases."""
        ours = {
            **self.folder.settings_env(self.stack()),
            "FLASHSALE_EDGE_PORT": str(self.edge_port),
            "FLASHSALE_EDGE_DIRECT_PORT": str(self.edge_direct_port),
            "FLASHSALE_BACKOFFICE_PORT": str(self.backoffice_port),
            "FLASHSALE_SMTP_URL": self.smtp_url,
            "FLASHSALE_LINK_URL": self.backoffice_url,
        }
        if self.settings.vapid_public_key is None:
            ours["FLASHSALE_VAPID_PUBLIC_KEY"] = self._vapid_key().public
        callers = self._callers_settings()
        for name in (*_payment_secrets(callers), *(set(callers) & (_VAPID_SECRETS | _WEBHOOK_SECRETS))):
            del callers[name]
        # The backoffice serves the shop page, which orders at the edge: another origin, with two names of this machine.
        origins = [f"http://{name}:{self.backoffice_port}" for name in ("127.0.0.1", "localhost")]
        pages = {
            "FLASHSALE_EDGE_PUBLIC_URL": self.settings.edge_public_url
            if "edge_public_url" in self.settings.model_fields_set
            else self.edge_url,
            "FLASHSALE_CORS_ORIGINS": ",".join(dict.fromkeys((*self.settings.cors_origins, *origins))),
        }
        return overrule(callers, ours | pages)

    def _vapid_key(self) -> VapidKey:
        """The caller's key of web push, or the folder's."""
        chosen = self.settings.vapid_key
        return load_vapid_key(self.folder.vapid_key) if chosen is None else VapidKey.parse(chosen.get_secret_value())

    def _notice_env(self) -> dict[str, str]:
        """The keys of notification workers."""
        own = {name: value for name, value in self.environ.items() if name in _VAPID_SECRETS}
        if not own:
            own["FLASHSALE_VAPID_KEY_FILE"] = str(self.folder.vapid_key)
        if self.settings.notice_key is None:
            own["FLASHSALE_NOTICE_KEY"] = self.folder.secret("notice_key")
        return own

    def _webhook_env(self) -> dict[str, str]:
        """The key of webhooks' secrets: the caller's, or the folder's."""
        own = {name: value for name, value in self.environ.items() if name in _WEBHOOK_SECRETS}
        return own or {"FLASHSALE_WEBHOOK_KEY": self.folder.secret("webhook_key")}

    def _redis_database(self, number: int) -> str:
        return self.redis.url.rpartition("/")[0] + f"/{number}"

    def initialise(self) -> None:
        """Make secrets, data folders and configurations, unless they exist."""
        self.make_secrets()
        self.redis.initialise()
        if self.redis_cluster is not None:
            self.redis_cluster.initialise()
        self._initialise_databases()
        if self.kafka is not None:
            self.kafka.initialise()
        if self.rabbitmq is not None:
            self.rabbitmq.initialise()

    def _initialise_databases(self) -> None:
        self.postgres.initialise()

    def server_groups(self) -> list[list[Program]]:
        """The servers in the order of their start: a group starts when the one before is ready."""
        return [self.servers()]

    def servers(self) -> list[Program]:
        """Redis, PostgreSQL, the chosen carriers, the mailbox and the simulator. Call `initialise` before."""
        return [self._redis("redis", self.redis), self._postgres("postgres", self.postgres), *self._other_servers()]

    def _redis(self, name: str, server: RedisServer) -> Program:
        return Program(
            name, server.argv, {**server.env, **self._member()}, self.folder.log(name),
            answers=server.answers, server_log=server.log,
        )  # fmt: skip

    def _postgres(self, name: str, server: PostgresServer) -> Program:
        return Program(
            name, server.argv, {**server.env, **self._member()}, self.folder.log(name),
            cwd=Path("/"), user=server.user, stop_signal=signal.SIGINT, stop_s_max=30.0,
            answers=server.accepts_connections,
        )  # fmt: skip

    def _member(self) -> dict[str, str]:
        """The mark by which the processes of this folder are found."""
        return {STATE_VARIABLE: str(self.folder.path)}

    def _other_servers(self) -> list[Program]:
        mailbox = [sys.executable, "-m", "devstack.mailbox", str(self.folder.mail), str(self.mail_port)]
        return [
            *self._cluster_nodes(),
            *self._kafka(),
            *self._rabbitmq(),
            Program("mailbox", mailbox, self._base_env(), self.folder.log("mailbox")),
            *self._simulator(),
        ]

    def _cluster_nodes(self) -> list[Program]:
        if self.redis_cluster is None:
            return []
        return [self._redis(name, node) for name, node in zip(CLUSTER_NODES, self.redis_cluster.nodes, strict=True)]

    def _rabbitmq(self) -> list[Program]:
        if self.rabbitmq is None:
            return []
        env = {**self.rabbitmq.env, **self._member()}
        return [
            Program("epmd", self.epmd.argv, env, self.folder.log("epmd")),
            Program(
                "rabbitmq", self.rabbitmq.argv, env, self.folder.log("rabbitmq"), stop_s_max=30.0,
                answers=self.rabbitmq.is_ready, is_needed_first=False, server_log=self.rabbitmq.log,
            ),
        ]  # fmt: skip

    def _kafka(self) -> list[Program]:
        if self.kafka is None:
            return []
        return [
            Program(
                KAFKA, self.kafka.argv, {**self.kafka.env, **self._member()}, self.folder.log(KAFKA),
                answers=self.kafka.answers, is_needed_first=False,
            )
        ]  # fmt: skip

    def prepare_databases(self) -> None:
        """Create the databases, and bring them to the newest schema. The servers run."""
        catalogue, *shards, analytics = map(self.postgres.create_database, self.database_names)
        migrate(catalogue, shards, analytics_dsn=analytics)

    def prepare_carriers(self) -> None:
        """Form the cluster, and create the topics. The carriers run."""
        if self.redis_cluster is not None:
            self.redis_cluster.form()
        if self.kafka is not None:
            self.kafka.create_topics()

    def _simulator(self) -> list[Program]:
        if self.payment_url is None:
            return []
        argv = [
            sys.executable, "-m", "devstack.payment_simulator", str(self.folder.data / "payments" / "books.sqlite"),
            str(self.payment_port), f"{self.edge_url}/v1/payments/webhook",
        ]  # fmt: skip
        env = {
            **self._base_env(),
            "SIMULATOR_API_KEY": self.folder.secret("payment_api_key"),
            "SIMULATOR_SECRET": self.folder.secret("payment_secret"),
        }
        return [Program(SIMULATOR, argv, env, self.folder.log(SIMULATOR), ready_url=f"{self.payment_url}/readyz")]

    def processes(self) -> list[Program]:
        """The project's processes in the order of their start; the edge is last."""
        env = {**self._base_env(), **self.settings_env()}
        staff = {
            "FLASHSALE_STAFF_KEY_FILE": str(self.folder.staff_key),
            "FLASHSALE_ADMIN_PASSWORD": self.admin_password,
            **self._webhook_env(),
        }
        programs = [self._program("backoffice", "backoffice", overrule(env, staff), self.backoffice_url)]
        for name, module in WORKERS.items():
            port = self.metrics_ports[name]
            own = {"FLASHSALE_METRICS_PORT": str(port), **self._payment_env(module)}
            if module == "workers.notifications":
                own |= self._notice_env()
            if module == "workers.webhooks":
                own |= self._webhook_env()
            programs.append(self._program(name, module, overrule(env, own), f"http://127.0.0.1:{port}"))
        programs.append(self._program("edge", "edge", overrule(env, self._payment_env("edge")), self.edge_url))
        return programs

    def _payment_env(self, module: str) -> dict[str, str]:
        """The payment provider of a process; nothing for a process that does not speak to one."""
        if module not in _PAY:
            return {}
        return _payment_secrets(self.environ) | self.folder.payment_env(self.stack())

    def _program(self, name: str, module: str, env: Mapping[str, str], url: str) -> Program:
        argv = [sys.executable, "-m", module]
        return Program(name, argv, env, self.folder.log(name), ready_url=f"{url}/readyz")

    @property
    def edge_url(self) -> str:
        """Address of the edge."""
        return f"http://127.0.0.1:{self.edge_port}"

    @property
    def backoffice_url(self) -> str:
        """Address of the backoffice."""
        return f"http://127.0.0.1:{self.backoffice_port}"

    @property
    def smtp_url(self) -> str:
        """Address of the stack's mailbox."""
        return f"smtp://127.0.0.1:{self.mail_port}"

    @property
    def payment_url(self) -> str | None:
        """Address of the payment simulator; None without one."""
        return None if self.payment_port is None else f"http://127.0.0.1:{self.payment_port}"

    @property
    def admin_password(self) -> str:
        """The caller's choice, or a password generated for this folder."""
        chosen = self.settings.admin_password
        return chosen.get_secret_value() if chosen else self.folder.secret("admin_password")

    def addresses(self) -> dict[str, Any]:
        """The fields of `Stack` that name the cache and the databases."""
        return {
            "cache_url": self._redis_database(1),
            "catalogue_dsn": self.postgres.dsn("catalogue"),
            "shard_dsns": [self.postgres.dsn(name) for name in self.database_names[1:-1]],
            "analytics_dsn": self.postgres.dsn("analytics"),
        }

    def stack(self) -> Stack:
        """The content of `stack.json`, without pids."""
        return Stack(
            edge_url=self.edge_url,
            edge_direct_url=f"http://127.0.0.1:{self.edge_direct_port}" if self.edge_direct_port else None,
            backoffice_url=self.backoffice_url,
            admin={"email": self.settings.admin_email, "password": self.admin_password},
            redis_url=self.redis.url if self.redis_cluster is None else self.redis_cluster.url,
            **self.addresses(),
            queue_url=self.redis.url if self.rabbitmq is None else self.rabbitmq.url,
            event_log_url=self.redis.url if self.kafka is None else self.kafka.url,
            payment_secret=self.folder.secret("payment_secret"),
            smtp_url=self.smtp_url,
            mail_folder=str(self.folder.mail),
            metrics={
                "edge": self.edge_url,
                "backoffice": self.backoffice_url,
                **{name: f"http://127.0.0.1:{port}" for name, port in self.metrics_ports.items()},
                **({} if self.payment_url is None else {SIMULATOR: self.payment_url}),
            },
            supervisor=os.getpid(),
            payment_url=self.payment_url,
            payment_api_key=None if self.payment_url is None else self.folder.secret("payment_api_key"),
        )


def _listening_port(port: int, name: str) -> int:
    if port == 0:
        return free_port()
    if not port_is_free(port):
        raise StackError(
            f"port {port} is in use: choose another with --{name}-port N, or --{name}-port 0 for a free one"
        )
    return port


def _payment_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    variables = {PREFIX + name.upper() for name in _PAYMENT_SECRETS}
    return {name: value for name, value in environ.items() if name.removesuffix("_FILE") in variables}
