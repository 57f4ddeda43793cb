"""Sessions of pools are alike, whatever the server, the database or the role has as its default."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from runtime.postgres.pool import postgres_pool
from tests.fixtures.fix_databases import Databases

TIME = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "defaults",
    ["", "-c TimeZone=Asia/Kolkata", "-c TimeZone=America/St_Johns", "-c DateStyle=SQL,DMY -c IntervalStyle=iso_8601"],
)
async def test_times_have_one_form(databases: Databases, defaults: str) -> None:
    dsn = f"{databases.catalogue_dsn}?options={quote(defaults)}"
    async with postgres_pool(SecretStr(dsn)) as pool, pool.connection() as connection:
        row = await (
            await connection.execute(
                "SELECT %s::timestamptz, '1 day 2 hours'::interval, %s::timestamptz::text", (TIME, TIME)
            )
        ).fetchone()
    assert row == (TIME, timedelta(days=1, hours=2), "2026-07-01 12:30:00+00")
    assert row[0].utcoffset() == timedelta(0)
