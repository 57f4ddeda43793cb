"""The deployment that a command works on: `--state-dir`, then FLASHSALE_* settings, then the project's own stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from devstack.servers import PostgresServer, RedisServer
from devstack.state import StateFolder
from domain.topology import FINGERPRINT_KEY
from ops import stack_file
from ops.stack_file import Stack, StackError
from ops.target import ADDRESSES, resolve
from runtime.process.errors import OperatorError
from runtime.process.settings import PREFIX, Settings
from runtime.tokens.keys import create_token_keys, load_token_keys
from tests.fixtures.fix_backoffice import ADMIN_EMAIL, ADMIN_PASSWORD, BackofficeProcess
from tests.fixtures.fix_databases import Databases

DATABASES = ("catalogue_dsn", "shard_dsns")
SET = {
    "FLASHSALE_CATALOGUE_DSN": "postgresql://env/c", "FLASHSALE_SHARDS": "2",
    "FLASHSALE_SHARD_DSNS": "postgresql://env/0,postgresql://env/1",
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the project's."""
    monkeypatch.setattr(stack_file, "PROJECT", tmp_path)
    return tmp_path


def make_stack(folder: StateFolder) -> int:
    """Write a stack that is up as long as the descriptor is open."""
    folder.make()
    lock = folder.acquire()
    assert lock is not None
    stack = Stack(
        edge_url="http://stack-edge", edge_direct_url=None, backoffice_url="http://stack-backoffice",
        admin={"email": "admin@stack", "password": "of the stack"}, redis_url="redis://stack/0",
        cache_url="redis://stack/1", catalogue_dsn="postgresql://stack/c", shard_dsns=["postgresql://stack/0"],
        queue_url="redis://stack/2", event_log_url="redis://stack/3", payment_secret="", smtp_url="smtp://stack",
        mail_folder="/mail", metrics={}, supervisor=os.getpid(),
    )  # fmt: skip
    folder.write_stack(stack)
    return lock


@pytest.fixture
def up(project: Path) -> Iterator[StateFolder]:
    """The project's own stack, up."""
    folder = StateFolder(project / ".flashsale")
    lock = make_stack(folder)
    yield folder
    os.close(lock)


def catalogue(settings: Settings) -> str:
    return settings.catalogue_dsn.get_secret_value()


@pytest.mark.usefixtures("up")
def test_settings_come_before_the_projects_stack() -> None:
    target = resolve(None, needs=DATABASES, environ=SET)
    assert (target.is_stack, target.stack) == (False, None)
    assert catalogue(target.settings) == "postgresql://env/c" and len(target.settings.shard_dsns) == 2
    assert target.environ == SET


def test_named_stack_comes_before_settings(project: Path) -> None:
    folder = StateFolder(project / "other")
    lock = make_stack(folder)
    try:
        environ = {**SET, "FLASHSALE_USER_RATE": "7", "FLASHSALE_REDIS_URL_FILE": "/theirs", "HOME": "/root"}
        target = resolve(folder.path, needs=DATABASES, environ=environ)
    finally:
        os.close(lock)
    assert target.is_stack and target.stack is not None
    assert catalogue(target.settings) == "postgresql://stack/c" == target.environ["FLASHSALE_CATALOGUE_DSN"]
    assert target.settings.user_rate == 7 and target.environ["HOME"] == "/root"
    assert "FLASHSALE_REDIS_URL_FILE" not in target.environ
    with pytest.raises(
        StackError, match=r"no stack is up in .*other: start .*leave out --state-dir and set FLASHSALE_C"
    ):
        resolve(folder.path, needs=DATABASES, environ=SET)


def test_stack_serves_where_no_address_is_set(up: StateFolder) -> None:
    needs = ("link_url", "edge_public_url", "admin_password", "token_keys_file")
    # Not addresses: a user may set these for `flashsale up`.
    environ = {"FLASHSALE_ADMIN_PASSWORD": "set for up", "FLASHSALE_EDGE_PUBLIC_URL": "http://set-for-up"}
    target = resolve(None, needs=needs, environ=environ)
    settings = target.settings
    assert settings.admin_password is not None
    assert (settings.link_url, settings.edge_public_url) == ("http://stack-backoffice", "http://stack-edge")
    assert (settings.admin_email, settings.admin_password.get_secret_value()) == ("admin@stack", "of the stack")
    assert settings.token_keys_file == up.token_keys and settings.staff_key_file == up.staff_key
    assert "of the stack" not in target.environ.values()  # a child needs no login


@pytest.mark.usefixtures("up")
def test_only_needed_addresses_choose() -> None:
    assert resolve(None, needs=["queue_url"], environ=SET).settings.queue_url == "redis://stack/2"
    assert not resolve(None, needs=["queue_url"], environ={"FLASHSALE_QUEUE_URL": "redis://env"}).is_stack


@pytest.mark.usefixtures("up")
def test_address_by_file_is_set(tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text("postgresql://file/c\n")
    environ = {**SET, "FLASHSALE_CATALOGUE_DSN_FILE": str(tmp_path / "dsn")}
    del environ["FLASHSALE_CATALOGUE_DSN"]
    assert catalogue(resolve(None, needs=DATABASES, environ=environ).settings) == "postgresql://file/c"


@pytest.mark.usefixtures("up")
def test_addresses_of_two_deployments_are_never_mixed() -> None:
    environ = {"FLASHSALE_CATALOGUE_DSN": "postgresql://env/c"}
    with pytest.raises(
        OperatorError, match=r"CATALOGUE_DSN is set, but FLASHSALE_SHARD_DSNS is not: set all .*--state-dir"
    ):
        resolve(None, needs=DATABASES, environ=environ)


def test_error_names_both_ways(project: Path) -> None:
    with pytest.raises(StackError) as raised:
        resolve(None, needs=DATABASES, environ={})
    assert str(raised.value) == (
        f"no stack is up in {project}/.flashsale, and FLASHSALE_CATALOGUE_DSN, FLASHSALE_SHARD_DSNS are not set: "
        "start one with `flashsale up --detach`, or set them"
    )
    with pytest.raises(StackError, match=r"there are no keys in .*FLASHSALE_TOKEN_KEYS_FILE is not set: .* or set it$"):
        resolve(None, needs=["token_keys_file"], running=False, environ={})


def test_keys_of_a_stack_that_is_down_are_enough_where_only_keys_are_needed(project: Path) -> None:
    folder = StateFolder(project / ".flashsale")
    folder.make()
    create_token_keys(folder.token_keys)
    target = resolve(None, needs=["token_keys_file"], running=False, environ={})
    assert (target.is_stack, target.stack, target.settings.token_keys_file) == (True, None, folder.token_keys)


@pytest.mark.usefixtures("up")
def test_stack_has_every_address() -> None:
    assert resolve(None, needs=["queue_url"], environ={}).settings.model_fields_set >= ADDRESSES


def deployed(cwd: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `flashsale` elsewhere, with these settings and no other."""
    passed_on = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.run(
        [str(Path(sys.executable).with_name("flashsale")), *arguments],
        env={**passed_on, **environ}, cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_operations_run_with_settings_only(
    postgres_server: PostgresServer, own_redis: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "workers").mkdir()  # must not shadow our package
    catalogue_dsn = postgres_server.create_database("deployed_catalogue")
    shards = [postgres_server.create_database(f"deployed_shard_{shard}") for shard in range(4)]
    databases = {"FLASHSALE_CATALOGUE_DSN": catalogue_dsn, "FLASHSALE_SHARD_DSNS": ",".join(shards)}
    queue = {"FLASHSALE_QUEUE_URL": own_redis.url}

    migrated = deployed(tmp_path, databases, "migrate", "--json")
    assert migrated.returncode == 0, migrated.stderr
    assert json.loads(migrated.stdout).keys() == {"catalogue", "shard_0", "shard_1", "shard_2", "shard_3"}
    assert deployed(tmp_path, databases, "migrate").stdout.count("up to date") == 5

    letters = deployed(tmp_path, {**databases, **queue}, "dead-letters", "list")
    assert (letters.returncode, letters.stdout) == (0, "There are no dead letters.\n"), letters.stderr

    everything = {**databases, **queue, "FLASHSALE_REDIS_URL": own_redis.url}
    judged = deployed(tmp_path, everything, "reconcile", "--wait-s", "0", "--json")
    assert judged.returncode == 1, judged.stderr
    answer = {"A": None, "B": None, "detail": ["no published sale in Redis"], "G": True, "money": []}
    assert json.loads(judged.stdout) == answer

    unknown = "0198c0de-0000-7000-8000-000000000000"
    rebuilt = deployed(tmp_path, everything, "rebuild", "--sale", unknown, "--wait-s", "1")
    assert rebuilt.returncode == 1
    assert rebuilt.stderr.startswith("rebuild: ") and unknown in rebuilt.stderr


def test_server_that_is_away_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:9/x"
    databases = {"FLASHSALE_CATALOGUE_DSN": nowhere, "FLASHSALE_SHARD_DSNS": ",".join([nowhere] * 4)}
    for environ, command in (
        (databases, ["migrate"]),
        ({**databases, "FLASHSALE_SHARD_DSNS": nowhere}, ["migrate"]),
        ({**databases, "FLASHSALE_QUEUE_URL": "amqp://127.0.0.1:9"}, ["dead-letters", "list"]),
        ({**databases, "FLASHSALE_QUEUE_URL": "nonsense"}, ["dead-letters", "list"]),
        ({**databases, "FLASHSALE_REDIS_URL": "nonsense"}, ["reconcile"]),
        ({**databases, "FLASHSALE_QUEUE_URL": "redis://127.0.0.1:9/0"}, ["dead-letters", "list"]),
        ({**databases, "FLASHSALE_CATALOGUE_DSN_FILE": "/none"}, ["migrate"]),
    ):
        done = deployed(tmp_path, environ, *command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("flashsale: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["reconcile", "rebuild"])
def test_redis_that_is_away_is_an_answer_without_a_traceback(tmp_path: Path, command: str) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:9/x"
    environ = {
        "FLASHSALE_CATALOGUE_DSN": nowhere, "FLASHSALE_SHARD_DSNS": ",".join([nowhere] * 4),
        "FLASHSALE_REDIS_URL": "redis://127.0.0.1:9/0", "FLASHSALE_QUEUE_URL": "redis://127.0.0.1:9/0",
    }  # fmt: skip
    sale = ("--sale", "0198c0de-0000-7000-8000-000000000000")
    done = deployed(tmp_path, environ, command, *sale, "--wait-s", "1", "--json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ConnectionError" in done.stdout and "127.0.0.1:9" in done.stdout


@pytest.mark.parametrize("command", ["reconcile", "rebuild"])
def test_other_cluster_settings_are_an_answer_without_a_traceback(
    databases: Databases, own_redis: RedisServer, tmp_path: Path, command: str
) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.set(FINGERPRINT_KEY, "0123456789abcdef")
    urls = {"FLASHSALE_REDIS_URL": own_redis.url, "FLASHSALE_QUEUE_URL": own_redis.url}
    sale = ("--sale", "0198c0de-0000-7000-8000-000000000000")
    done = deployed(tmp_path, databases.environ | urls, command, *sale, "--wait-s", "1", "--json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "FLASHSALE_LANES and FLASHSALE_FIRST_SHARDS" in done.stdout


def test_tokens_are_minted_from_a_key_file(tmp_path: Path) -> None:
    create_token_keys(tmp_path / "keys.json")
    done = deployed(tmp_path, {"FLASHSALE_TOKEN_KEYS_FILE": "keys.json"}, "mint-tokens", "--users", "2")
    assert len(done.stdout.splitlines()) == 2, done.stderr


def test_import_sample_and_rotation_run_with_settings_only(
    databases: Databases, own_redis: RedisServer, tmp_path: Path
) -> None:
    backoffice = BackofficeProcess(tmp_path, own_redis.url, databases)
    backoffice.start()
    try:
        login = {"FLASHSALE_ADMIN_EMAIL": ADMIN_EMAIL, "FLASHSALE_ADMIN_PASSWORD": ADMIN_PASSWORD}
        shop = {**login, "FLASHSALE_LINK_URL": backoffice.url}
        (tmp_path / "p.csv").write_text("sku,name,price_minor,currency\nA,x,1,EUR\n")
        imported = deployed(tmp_path, shop, "import", "products", "p.csv", "--json")
        assert imported.returncode == 0 and json.loads(imported.stdout)["created"] == 1, imported.stderr

        keys = {"FLASHSALE_TOKEN_KEYS_FILE": str(backoffice.token_keys_file)}
        half = deployed(tmp_path, {**shop, **keys}, "sample-sale")
        assert half.returncode == 1 and "FLASHSALE_EDGE_PUBLIC_URL is not" in half.stderr
        edge = {"FLASHSALE_EDGE_PUBLIC_URL": "http://edge.example"}
        sample = json.loads(deployed(tmp_path, {**shop, **keys, **edge}, "sample-sale", "--json").stdout)
        assert sample["sale_url"] == f"http://edge.example/v1/sales/{sample['sale_id']}"
        assert sample["shop_url"].startswith(backoffice.url)

        rings = {**keys, "FLASHSALE_STAFF_KEY_FILE": str(backoffice.staff_key_file)}
        active = load_token_keys(backoffice.token_keys_file).active
        blind = deployed(tmp_path, rings, "rotate-keys")
        assert blind.returncode == 2 and "--process" in blind.stderr
        assert load_token_keys(backoffice.token_keys_file).active == active
        # The backoffice reports the buyers' keys as an edge does.
        named = ("--process", f"backoffice={backoffice.url}", "--process", f"edge={backoffice.url}")
        rotated = deployed(tmp_path, rings, "rotate-keys", *named, "--json")
        assert rotated.returncode == 0, rotated.stderr
        done = json.loads(rotated.stdout)
        assert (done["buyer"]["processes"], done["staff"]["processes"]) == (["backoffice", "edge"], ["backoffice"])
    finally:
        backoffice.stop()


def test_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = ["--token-keys", str(tmp_path / "none.json"), "--staff-key", str(tmp_path / "none.pem")]
    done = deployed(tmp_path, {}, "rotate-keys", *files)
    assert done.returncode == 1
    assert done.stderr.startswith(f"flashsale: there is no key file {tmp_path}/none.json: create it")
