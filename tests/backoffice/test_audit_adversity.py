"""The audit log under hostile and unlucky conditions: floods, poison, servers that are away, look-alike values."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from backoffice.audit.refusals import MANY, Refusal, Refusals
from backoffice.audit.store import AuditLog, Entry, Filters
from domain import ids
from runtime.audit import Action
from tests.fixtures.fix_users import Accounts


async def nobody(_: str) -> UUID | None:
    return None


def refusal(client: str | None, object_: str = "unknown", email: str | None = None) -> Refusal:
    return Refusal(Action.USER_LOGIN, object_, "anonymous", client, "credentials_invalid", email)


async def found(accounts: Accounts, **filters: Any) -> list[Entry]:
    return await AuditLog(accounts.stores).page(Filters(**filters), before=None, limit=100)


async def test_a_flood_of_one_client_leaves_room_for_others(accounts: Accounts) -> None:
    refusals = Refusals(accounts.stores.catalogue, nobody, client_keys_max=3)
    for number in range(50):
        refusals.note(refusal("10.0.0.1", f"sale:{number}"), request_id="r")
    refusals.note(refusal("10.0.0.2", "user:1"), request_id="r")
    await refusals.step()
    written = {(entry.client, entry.object): entry.times for entry in await found(accounts)}
    assert written.pop(("10.0.0.1", MANY)) == 47
    assert written == {("10.0.0.1", f"sale:{number}"): 1 for number in range(3)} | {("10.0.0.2", "user:1"): 1}


async def test_the_room_of_a_client_is_free_again_after_the_window(accounts: Accounts) -> None:
    refusals = Refusals(accounts.stores.catalogue, nobody, client_keys_max=1, window_s=0.0)
    for number in range(3):
        refusals.note(refusal("10.0.0.1", f"sale:{number}"), request_id="r")
        await refusals.step()
        await refusals.step()
    assert {entry.object for entry in await found(accounts)} == {"sale:0", "sale:1", "sale:2"}


async def test_a_shard_that_is_away_delays_only_refusals_of_its_addresses(accounts: Accounts) -> None:
    user_id = uuid4()
    is_away = True

    async def find(email: str) -> UUID | None:
        if email == "away@shop.example" and is_away:
            raise psycopg.OperationalError
        return user_id

    refusals = Refusals(accounts.stores.catalogue, find)
    refusals.note(refusal("10.0.0.1", email="away@shop.example"), request_id=None)
    refusals.note(refusal("10.0.0.1", email="there@shop.example"), request_id=None)
    refusals.note(refusal("10.0.0.1", "sale:1"), request_id=None)
    with pytest.raises(psycopg.OperationalError):
        await refusals.step()
    assert {entry.object for entry in await found(accounts)} == {f"user:{user_id}", "sale:1"}
    is_away = False
    assert await refusals.step() == 1
    assert [entry.object for entry in await found(accounts)].count(f"user:{user_id}") == 2


async def test_one_refusal_that_cannot_be_stored_does_not_take_others_with_it(accounts: Accounts) -> None:
    refusals = Refusals(accounts.stores.catalogue, nobody)
    for object_ in ("sale:1", "\0", "x" * 400, "sale:2"):
        refusals.note(refusal("10.0.0.1", object_), request_id=None)
    await refusals.step()
    assert {entry.object for entry in await found(accounts)} == {"sale:1", "sale:2"}


async def test_a_refusal_that_is_written_late_has_its_own_time(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists are in the order of ids, and look for times near the ids: an entry must not be missing in `since`."""
    is_away = True

    async def find(_: str) -> UUID | None:
        if is_away:
            raise psycopg.OperationalError
        return None

    refusals = Refusals(accounts.stores.catalogue, find)
    an_hour_ago = time.time_ns() - 3_600_000_000_000
    with monkeypatch.context() as past:
        past.setattr(ids.time, "time_ns", lambda: an_hour_ago)
        past.setattr("backoffice.audit.refusals.datetime", _Past)
        refusals.note(refusal("10.0.0.1", email="ada@shop.example"), request_id=None)
    with pytest.raises(psycopg.OperationalError):
        await refusals.step()
    is_away = False
    assert await refusals.step() == 1
    (entry,) = await found(accounts)
    assert abs(entry.at.timestamp() - an_hour_ago / 1e9) < 60
    assert await found(accounts, since=entry.at - timedelta(seconds=1)) == [entry]
    assert await found(accounts, since=entry.at + timedelta(minutes=10)) == []


class _Past:
    @staticmethod
    def now(zone: Any) -> datetime:
        return datetime.now(zone) - timedelta(hours=1)
