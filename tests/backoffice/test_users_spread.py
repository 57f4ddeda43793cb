"""100,000 accounts in the databases: evenly spread, and found by indexes."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import psycopg

from backoffice.users import administrators
from backoffice.users.store import SQL
from backoffice.web.messages import Role
from domain import ids
from domain.topology import Topology, bucket_of_user
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_users import HASH, Accounts

USERS = 100_000
UNEVEN_MAX = 0.05
STAFF_EACH = 2_000  # one of this many accounts belongs to staff


def fill(databases: Databases) -> list[UUID]:
    """Insert accounts with ids as a registration makes them, in the shards of the topology; the ids, oldest first."""
    topology = Topology()
    shards = range(len(databases.shard_dsns))
    users: list[list[tuple[object, ...]]] = [[] for _ in shards]
    entries: list[list[tuple[object, ...]]] = [[] for _ in shards]
    made = sorted(ids.new_uuid7() for _ in range(USERS))
    for place, user_id in enumerate(made):
        email = f"user-{place}@shop.example"
        role = "staff" if place % STAFF_EACH == 0 else "buyer"
        row = (user_id, bucket_of_user(user_id), email, email, "Ada", HASH, role)
        users[topology.shard_of_user(user_id)].append(row)
        entries[topology.shard_of_address(email)].append((email, user_id, True))
    for shard, dsn in enumerate(databases.shard_dsns):
        with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
            with cursor.copy(
                "COPY users (id, bucket, email, email_folded, name, password_hash, role) FROM STDIN"
            ) as copy:
                for row in users[shard]:
                    copy.write_row(row)
            with cursor.copy("COPY login_index (email_folded, user_id, confirmed) FROM STDIN") as copy:
                for entry in entries[shard]:
                    copy.write_row(entry)
    for dsn in databases.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("ANALYZE users, login_index")
    return made


def plan(dsn: str, statement: str, **parameters: object) -> str:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("EXPLAIN (COSTS OFF) " + statement, parameters).fetchall()
    return "\n".join(row[0] for row in found)


async def test_a_hundred_thousand_accounts(accounts: Accounts) -> None:
    databases = accounts.databases
    made = fill(databases)
    for table in ("users", "login_index"):
        counts = accounts.rows(f"SELECT count(*) FROM {table}")
        assert sum(counts) == USERS
        even = USERS / len(counts)
        assert all(abs(count - even) <= UNEVEN_MAX * even for count in counts), counts
    # Buckets are even, too, so that moving buckets between shards moves a proportional number of accounts.
    buckets = Counter(accounts.rows("SELECT bucket FROM users"))
    assert len(buckets) == 1024 and max(buckets.values()) < 2 * USERS / 1024

    reader = ids.new_uuid7()
    seen: list[UUID] = []
    for _ in range(10):
        page = await accounts.users.page(role=None, before=seen[-1] if seen else None, limit=200, reader=reader)
        seen += [user.id for user in page]
    assert seen == made[:-2001:-1]
    found = await accounts.users.find("USER-77777@shop.example")
    assert found is not None and found.id == made[77_777]
    nobody = {"before": None, "role": None, "limit": 51}
    dsn = databases.shard_dsns[0]
    for wanted, index in (({}, "users_pkey"), ({"before": made[5]}, "users_pkey"), ({"role": "buyer"}, "users_pkey")):
        shown = plan(dsn, SQL["page"], **{**nobody, **wanted})
        assert f"using {index}" in shown and "Seq Scan" not in shown and "Sort" not in shown, shown
    for statement, parameters in (
        (SQL["page"], {**nobody, "role": "staff"}),
        (administrators.SQL["count_admins"], {"besides": made[0]}),
    ):
        shown = plan(dsn, statement, **parameters)
        assert "users_of_staff" in shown and "Seq Scan" not in shown, shown
    staff = await accounts.users.page(role=Role.STAFF, before=None, limit=100, reader=reader)
    assert [user.id for user in staff] == made[::STAFF_EACH][::-1]
