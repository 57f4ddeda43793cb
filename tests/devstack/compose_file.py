"""Reads docker-compose.yml, and lists its differences from the plan of a stack and from its servers. Starts nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from devstack.kafka import HEAP_MB, KafkaServer
from devstack.plan import SIMULATOR, Plan
from devstack.rabbitmq import RETURN_CONFIRM_MS, RabbitServer
from devstack.servers import PostgresServer, RedisServer
from runtime.process.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
SCRIPTS = ROOT / "devstack" / "compose"
SECRETS_PLACE = "/run/secrets/"
DATABASES = ("catalogue", *(f"shard-{shard}" for shard in range(Settings().shards)))
SERVERS = {
    "redis", "redis-replica", "cache", "rabbitmq", "kafka", "mailbox", SIMULATOR, "migrate", "flashsale",
    *(f"{database}{part}" for database in DATABASES for part in ("", "-replica", "-pooler")),
}  # fmt: skip
# Settings that a process gets in one of the two only.
CONTAINERS_ONLY = {
    # In a container, the loopback address reaches the process itself only.
    "edge_host", "backoffice_host", "metrics_host",
    # The embedded stack has no replicas.
    "catalogue_replica_dsn", "shard_replica_dsns",
}  # fmt: skip
SECRET_SETTINGS = {
    name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
} | {"redis_url", "cache_url", "queue_url"}  # fmt: skip
# Options of a server that name a place: addresses and paths differ in a container.
REDIS_PLACES = {"port", "bind", "dir", "logfile", "daemonize"}
POSTGRES_PLACES = {"listen_addresses", "unix_socket_directories"}
POSTGRES_REPLICATION = {"max_slot_wal_keep_size", "hot_standby_feedback"}
KAFKA_PLACES = {"controller.quorum.voters", "listeners", "advertised.listeners", "log.dirs"}
RABBITMQ_PLACES = ("listeners.", "log.", "default_")
HARDENED = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
_PINNED = re.compile(r"[a-z/-]+:\d+\.\d+[\w.-]*")


def load() -> dict[str, Any]:
    """The file, with its fragments in place."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return document


def interpolated(text: str) -> str:
    """The text with each variable replaced by its default."""
    while (replaced := re.sub(r"\$\{\w+:?-([^${}]*)\}", r"\1", text)) != text:
        text = replaced
    return text


def setting(variable: str) -> str:
    """The setting that a variable of the environment gives, itself or as a file."""
    name = variable.removeprefix(PREFIX).lower()
    return name if name in Settings.model_fields else name.removesuffix("_file")


def settings_of(environment: dict[str, str]) -> set[str]:
    """The names of the settings in an environment."""
    return {setting(variable) for variable in environment if variable.startswith(PREFIX)}


def differences(document: dict[str, Any], plan: Plan) -> list[str]:
    """Each difference between the file and what a stack of this machine runs; a sentence each."""
    services: dict[str, dict[str, Any]] = document["services"]
    return [
        *_processes(services, plan),
        *_servers(services, plan),
        *_secrets(document),
        *_ports(services),
        *_order(services),
        *_bounds(services),
    ]


def _processes(services: dict[str, dict[str, Any]], plan: Plan) -> Iterator[str]:
    programs = {program.name: program for program in plan.processes()}
    for name in sorted(services.keys() - programs.keys() - SERVERS):
        yield f"{name}: is in the file only"
    for name in sorted((programs.keys() | SERVERS) - services.keys()):
        yield f"{name}: is missing in the file"
    for name in sorted(programs.keys() & services.keys()):
        service, program = services[name], programs[name]
        if service["command"][1:] != program.argv[1:]:
            yield f"{name}: runs {service['command']}, the plan {program.argv}"
        here, there = settings_of(service["environment"]), settings_of(dict(program.env))
        for extra in sorted(here - there - CONTAINERS_ONLY):
            yield f"{name}: {extra} is set in the file only"
        for missing in sorted(there - here):
            yield f"{name}: {missing} is not set in the file"
        for stale in sorted(there & CONTAINERS_ONLY):
            yield f"{name}: {stale} is in the plan: remove it from CONTAINERS_ONLY"


def _servers(services: dict[str, dict[str, Any]], plan: Plan) -> Iterator[str]:
    for name in ("redis", "redis-replica"):
        yield from _compared(name, _pairs(services[name]["command"][2:]), _redis_options(plan.redis), REDIS_PLACES)
    for name in (f"{database}{part}" for database in DATABASES for part in ("", "-replica")):
        here = dict(option.removeprefix("-c").split("=", 1) for option in services[name]["command"][1:])
        left_out = POSTGRES_PLACES | POSTGRES_REPLICATION
        yield from _compared(name, here, _postgres_options(plan.postgres), left_out)
    assert plan.kafka is not None and plan.rabbitmq is not None
    yield from _kafka(services["kafka"]["environment"], plan.kafka)
    yield from _rabbitmq(services["rabbitmq"], plan.rabbitmq)


def _compared(name: str, here: dict[str, str], there: dict[str, str], left_out: set[str]) -> Iterator[str]:
    for option in sorted((here.keys() | there.keys()) - left_out):
        if here.get(option) != there.get(option):
            yield f"{name}: {option} is {here.get(option)} in the file, {there.get(option)} in the stack"


def _pairs(options: list[str]) -> dict[str, str]:
    return {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}


def _redis_options(server: RedisServer) -> dict[str, str]:
    argv = server.argv
    return _pairs(argv[next(place for place, part in enumerate(argv) if part.startswith("--")) :])


def _postgres_options(server: PostgresServer) -> dict[str, str]:
    argv = server.argv
    return dict(value.split("=", 1) for flag, value in pairwise(argv) if flag == "-c")


def _kafka(environment: dict[str, str], server: KafkaServer) -> Iterator[str]:
    server.write_configuration()
    lines = (server.folder / "server.properties").read_text(encoding="utf-8").splitlines()
    there = {name.replace(".", "_").upper(): value for name, value in (line.split("=", 1) for line in lines)}
    here = {name.removeprefix("KAFKA_"): value for name, value in environment.items() if name.startswith("KAFKA_")}
    if here.pop("HEAP_OPTS", None) != f"-Xms{HEAP_MB}m -Xmx{HEAP_MB}m":
        yield "kafka: HEAP_OPTS differs from devstack/kafka.py"
    yield from _compared("kafka", here, there, {name.replace(".", "_").upper() for name in KAFKA_PLACES})


def _rabbitmq(service: dict[str, Any], server: RabbitServer) -> Iterator[str]:
    server.initialise()

    def lines(path: Path) -> dict[str, str]:
        pairs = (line.split(" = ", 1) for line in path.read_text(encoding="utf-8").splitlines() if " = " in line)
        return {name: value for name, value in pairs if not name.startswith(RABBITMQ_PLACES)}

    yield from _compared("rabbitmq", lines(SCRIPTS / "rabbitmq.conf"), lines(server.folder / "rabbitmq.conf"), set())
    if str(RETURN_CONFIRM_MS) not in (SCRIPTS / "rabbitmq-advanced.config").read_text(encoding="utf-8"):
        yield "rabbitmq: its advanced.config differs from devstack/rabbitmq.py"
    if (
        service["environment"]["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
        not in server.env["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    ):
        yield "rabbitmq: its flags of Erlang differ from devstack/rabbitmq.py"


def _secrets(document: dict[str, Any]) -> Iterator[str]:
    used: set[str] = set()
    for name, service in document["services"].items():
        entries = [{"source": s} if isinstance(s, str) else s for s in service.get("secrets", ())]
        sources = {entry["source"] for entry in entries}
        targets = {entry.get("target", entry["source"]) for entry in entries}
        used |= sources
        environment: dict[str, str] = service.get("environment", {})
        texts = [*map(str, environment.values()), *map(str, service.get("command", ()))]
        named = {text.removeprefix(SECRETS_PLACE) for text in texts if text.startswith(SECRETS_PLACE)}
        for secret in sorted(named - targets):
            yield f"{name}: names the secret {secret} without having it"
        if service["image"].startswith("flashsale:"):
            for secret in sorted(sources - named):
                yield f"{name}: has the secret {secret} without use"
        for variable, value in environment.items():
            if setting(variable) in SECRET_SETTINGS and not str(value).startswith(SECRETS_PLACE):
                yield f"{name}: {variable} is a secret, but not a file in {SECRETS_PLACE}"
            if re.search(r"PASSWORD|SECRET|API_KEY", variable) and not str(value).startswith(SECRETS_PLACE):
                yield f"{name}: {variable} is a secret, but not a file in {SECRETS_PLACE}"
    for secret in sorted(used ^ document["secrets"].keys()):
        yield f"the secret {secret} is not both declared and used"


def _ports(services: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, service in services.items():
        environment: dict[str, str] = service.get("environment", {})
        listening = {
            "edge": {environment.get("FLASHSALE_EDGE_PORT"), environment.get("FLASHSALE_EDGE_DIRECT_PORT")},
            "backoffice": {environment.get("FLASHSALE_BACKOFFICE_PORT")},
            SIMULATOR: {"9200"},
        }.get(name, {environment.get("FLASHSALE_METRICS_PORT")})
        for published in service.get("ports", ()):
            if published.rpartition(":")[2] not in listening:
                yield f"{name}: publishes {published}, but listens on {sorted(map(str, listening))}"
            if not published.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:"):
                yield f"{name}: {published} is open to other machines by default"
        probe = service.get("healthcheck", {}).get("test", ())
        if list(probe[1:2]) == ["ready"] and probe[2] not in listening:
            yield f"{name}: its probe asks port {probe[2]}, but it listens on {sorted(map(str, listening))}"
    defaults, edge = Settings(), services["edge"]["environment"]
    for variable, port in (("EDGE_PORT", defaults.edge_port), ("BACKOFFICE_PORT", defaults.backoffice_port)):
        if edge[f"FLASHSALE_{variable}"] != str(port):
            yield f"edge: FLASHSALE_{variable} is not its default {port}"


def _order(services: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A process starts when all schemas are there and its servers are ready."""
    poolers = {f"{database}-pooler" for database in DATABASES}
    ready = dict.fromkeys((*poolers, "redis", "cache", "rabbitmq", "kafka"), "service_healthy")
    migrated = {"migrate": "service_completed_successfully"}
    sides = {f"{database}{part}": "service_healthy" for database in DATABASES for part in ("", "-replica")}
    for name, service in services.items():
        waits = {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        if name not in SERVERS and waits != ready | migrated:
            yield f"{name}: does not wait for all of {sorted(ready | migrated)}"
        if name == "migrate" and waits != sides | {"kafka": "service_healthy"}:
            yield f"{name}: does not wait for all of {sorted(sides)} and kafka"
        upstream = service.get("environment", {}).get("UPSTREAM") or service.get("environment", {}).get("PRIMARY")
        part = "-pooler" if "UPSTREAM" in service.get("environment", {}) else "-replica"
        if upstream and (f"{upstream}{part}" != name or waits != {upstream: "service_healthy"}):
            yield f"{name}: belongs to {upstream}"


def _bounds(services: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Least rights, limits, a probe and a version for each container."""
    for name, service in services.items():
        for key, value in HARDENED.items():
            if service.get(key) != value:
                yield f"{name}: {key} is not {value}"
        if service.get("privileged") or service.get("cap_add") or service.get("network_mode"):
            yield f"{name}: has rights that it does not need"
        if not service["image"].startswith("flashsale") and str(service.get("user", "0")).startswith(("0", "root")):
            yield f"{name}: runs as root"
        if service.get("deploy", {}).get("resources", {}).get("limits", {}).keys() != {"cpus", "memory", "pids"}:
            yield f"{name}: lacks a limit of cpus, memory or pids"
        if not _PINNED.fullmatch(service["image"]):
            yield f"{name}: {service['image']} is no exact version"
        if name not in ("migrate", "flashsale") and "test" not in service.get("healthcheck", {}):
            yield f"{name}: has no healthcheck"
        if {"max-size", "max-file"} - service.get("logging", {}).get("options", {}).keys():
            yield f"{name}: its log has no bound"
