"""Fixtures shared by all tests: real servers, one file per concern under `tests/fixtures/`."""

from hypothesis import HealthCheck, settings

# A slow machine fails no test: other test processes and their servers run on the same cores.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

pytest_plugins = [
    "tests.fixtures.fix_http",
    "tests.fixtures.fix_redis",
    "tests.fixtures.fix_cluster",
    "tests.fixtures.fix_kafka",
    "tests.fixtures.fix_rabbitmq",
    "tests.fixtures.fix_postgres",
    "tests.fixtures.fix_databases",
    "tests.fixtures.fix_replica",
    "tests.fixtures.fix_pair",
    "tests.fixtures.fix_till",
    "tests.fixtures.fix_writers",
    "tests.fixtures.fix_scripts",
    "tests.fixtures.fix_mail",
    "tests.fixtures.fix_push",
    "tests.fixtures.fix_receiver",
    "tests.fixtures.fix_edge",
    "tests.fixtures.fix_backoffice",
    "tests.fixtures.fix_stack",
    "tests.fixtures.fix_payments",
    "tests.fixtures.fix_users",
    "tests.fixtures.fix_people",
    "tests.fixtures.fix_issuer",
    "tests.fixtures.skips",
    "tests.fixtures.record",
    "tests.fixtures.workers",
]
