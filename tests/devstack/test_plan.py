"""The plan of a stack with each payment provider: its processes, and which of them get the provider's secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import rabbitmq
from devstack.plan import EVENT_LOG_VARIABLE, QUEUE_VARIABLE, RABBITMQ, SIMULATOR, Plan
from devstack.servers import PostgresServer
from devstack.state import StateFolder
from ops.stack_file import StackError
from runtime.process.settings import SettingsError

SECRETS = {
    "FLASHSALE_PAYMENT_API_KEY": "sk_test_of_the_caller",
    "FLASHSALE_PAYMENT_WEBHOOK_SECRETS": "whsec_of_the_caller",
}
PAY = {"edge", "payments-0"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    monkeypatch.setattr(PostgresServer, "dsn", lambda _, name: f"postgresql://{name}")  # it has no password yet
    folder = StateFolder(tmp_path / "state")
    folder.make()
    (folder.data / "postgres").mkdir()  # the place of its data is known before it is initialised
    yield folder
    folder.destroy()


def plan(folder: StateFolder, **environ: str) -> Plan:
    made = Plan(folder, 0, 0, environ)
    made.make_secrets()
    return made


def having(plan: Plan, name: str) -> dict[str, str]:
    """The processes that get a variable, and its value."""
    return {program.name: program.env[name] for program in plan.processes() if name in program.env}


def test_simulator_is_the_default(folder: StateFolder) -> None:
    made = plan(folder)
    assert SIMULATOR in [program.name for program in made.servers()]
    stack = made.stack()
    assert having(made, "FLASHSALE_PAYMENT_PROVIDER") == dict.fromkeys(PAY, "simulated")
    assert having(made, "FLASHSALE_PAYMENT_API_KEY") == dict.fromkeys(PAY, stack.payment_api_key)
    assert having(made, "FLASHSALE_PAYMENT_WEBHOOK_SECRETS") == dict.fromkeys(PAY, stack.payment_secret)
    assert stack.metrics[SIMULATOR] == stack.payment_url
    for program in made.servers():
        text = " ".join(program.argv)
        assert stack.payment_secret not in text and str(stack.payment_api_key) not in text


@pytest.mark.parametrize("by_file", [False, True])
def test_another_provider_of_the_caller(folder: StateFolder, tmp_path: Path, by_file: bool) -> None:
    environ = {"FLASHSALE_PAYMENT_PROVIDER": "stripe", **SECRETS}
    if by_file:
        for name in SECRETS:
            path = tmp_path / name
            path.write_text(environ.pop(name))
            environ[f"{name}_FILE"] = str(path)
    made = plan(folder, **environ)
    assert SIMULATOR not in [program.name for program in made.servers()]
    assert (made.stack().payment_url, made.stack().payment_api_key) == (None, None)
    for name in SECRETS:
        variable = f"{name}_FILE" if by_file else name
        assert having(made, variable) == dict.fromkeys(PAY, environ[variable])
    assert set(having(made, "FLASHSALE_PAYMENT_PROVIDER").values()) == {"stripe"}


def test_no_provider(folder: StateFolder) -> None:
    made = plan(folder, FLASHSALE_PAYMENT_PROVIDER="none")
    assert SIMULATOR not in [program.name for program in made.servers()] and SIMULATOR not in made.stack().metrics
    assert having(made, "FLASHSALE_PAYMENT_API_KEY") == {}


def test_simulator_elsewhere(folder: StateFolder) -> None:
    url = "http://127.0.0.1:1"
    made = plan(folder, FLASHSALE_PAYMENT_PROVIDER="simulated", FLASHSALE_PAYMENT_URL=url, **SECRETS)
    assert SIMULATOR not in [program.name for program in made.servers()]
    assert set(having(made, "FLASHSALE_PAYMENT_URL").values()) == {url}
    assert having(made, "FLASHSALE_PAYMENT_API_KEY") == dict.fromkeys(PAY, "sk_test_of_the_caller")


def test_caller_cannot_replace_the_simulators_own_secrets(folder: StateFolder) -> None:
    made = plan(folder, **SECRETS)
    assert having(made, "FLASHSALE_PAYMENT_API_KEY") == dict.fromkeys(PAY, made.stack().payment_api_key)


def test_unknown_provider_is_said_before_anything_starts(folder: StateFolder) -> None:
    with pytest.raises(SettingsError, match="FLASHSALE_PAYMENT_PROVIDER"):
        plan(folder, FLASHSALE_PAYMENT_PROVIDER="bank")


def test_the_event_log_on_kafka(folder: StateFolder) -> None:
    assert "kafka" not in [program.name for program in plan(folder).servers()]
    made = plan(folder, **{EVENT_LOG_VARIABLE: "kafka", "FLASHSALE_KAFKA_USERNAME": "of-another-cluster"})
    assert made.kafka is not None
    assert "kafka" in [program.name for program in made.servers()]
    assert made.stack().event_log_url == made.kafka.url != made.stack().queue_url
    assert set(having(made, "FLASHSALE_EVENT_LOG_URL").values()) == {made.kafka.url}
    assert having(made, "FLASHSALE_KAFKA_USERNAME") == {}


def test_queues_on_rabbitmq(folder: StateFolder) -> None:
    if rabbitmq.programs_folder() is None:
        pytest.skip(rabbitmq.HOW_TO_INSTALL)
    made = plan(folder, **{QUEUE_VARIABLE: "rabbitmq"})
    programs = {program.name: program for program in made.servers()}
    assert set(RABBITMQ) < set(programs)
    url = made.stack().queue_url
    assert url.startswith("amqp://") and url != made.stack().redis_url
    assert set(having(made, "FLASHSALE_QUEUE_URL").values()) == {url}
    password = folder.secret("rabbitmq_password")
    for name in RABBITMQ:
        program = programs[name]
        assert password not in " ".join([*program.argv, *program.env.values()])
    assert not set(RABBITMQ) & {program.name for program in plan(folder).servers()}


def test_a_missing_rabbitmq_is_named_before_anything_starts(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RABBITMQ_HOME", str(tmp_path))
    with pytest.raises(StackError, match="apt-get install rabbitmq-server"):
        plan(folder, **{QUEUE_VARIABLE: "rabbitmq"})
