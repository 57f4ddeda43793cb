"""Accounts and the login index in different databases: races, and a crash after every step of every change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from backoffice.users import addresses as addresses_module
from backoffice.users.addresses import ClaimLapsed
from backoffice.users.model import User
from backoffice.users.store import EmailTaken
from backoffice.web.messages import Role
from domain.topology import Topology
from tests.fixtures.fix_users import HASH, Accounts

OLD, NEW = "ada@shop.example", "lovelace@shop.example"


NOTICES = "SELECT events FROM outbox WHERE destination = 'notices' ORDER BY id"


class Crash(Exception):
    """A crash of the process."""


@contextmanager
def dying_at(owner: Any, step: str, *, after: bool = False, error: type[Exception] = Crash) -> Iterator[None]:
    """Crash at this step, before its effect or right after."""
    original: Callable[..., Any] = getattr(type(owner), step)

    async def die(self: Any, *arguments: Any, **named: Any) -> None:
        if after:
            await original(self, *arguments, **named)
        raise error

    setattr(type(owner), step, die)
    try:
        yield
    finally:
        setattr(type(owner), step, original)


async def login(accounts: Accounts, email: str) -> UUID | None:
    found = await accounts.users.find(email)
    return None if found is None else found.id


async def test_another_address(accounts: Accounts) -> None:
    user = await accounts.make(OLD)
    changed = await accounts.change(user, email="Lovelace@Shop.example")
    assert changed == User(user.id, "Lovelace@Shop.example", "Ada", "buyer", 2, user.created_at, email_verified=False)
    assert accounts.index() == {NEW: (user.id, True)}
    assert accounts.rows("SELECT email_folded FROM login_releases") == []
    assert await login(accounts, "LOVELACE@shop.example") == user.id
    assert await login(accounts, OLD) is None
    assert (await accounts.make(OLD)).id != user.id  # free again
    # The new address must be verified, and the old mailbox gets a notice.
    told = [event for events in accounts.rows(NOTICES) for event in events]
    assert [(event["type"], event["data"]) for event in told] == [
        ("notice.verify_email", {"user_id": str(user.id)}),
        ("notice.email_changed", {"user_id": str(user.id), "email": OLD}),
    ]


async def test_another_case_of_the_same_address(accounts: Accounts) -> None:
    user = await accounts.make(OLD)
    changed = await accounts.change(user, email=OLD.upper())
    assert changed is not None and changed.email == OLD.upper()
    assert accounts.index() == {OLD: (user.id, True)}
    assert accounts.rows(NOTICES) == []


async def test_an_address_in_use_is_not_given(accounts: Accounts) -> None:
    user, other = await accounts.make(OLD), await accounts.make(NEW)
    with pytest.raises(EmailTaken):
        await accounts.change(user, email=NEW.upper(), name="X")
    assert await accounts.users.newest(user.id) == user
    assert accounts.index() == {OLD: (user.id, True), NEW: (other.id, True)}


async def test_of_two_changes_of_one_version_one_is_made(accounts: Accounts) -> None:
    user = await accounts.make(OLD)
    emails = [f"a{place}@shop.example" for place in range(4)]
    results = await asyncio.gather(*(accounts.change(user, email=email) for email in emails))
    (made,) = [result for result in results if result is not None]
    assert made.version == 2
    found = {email: await login(accounts, email) for email in (OLD, *emails)}
    assert found == {email: user.id if email == made.email else None for email in (OLD, *emails)}
    # The claims of the losers go stale.
    accounts.age(61)
    await accounts.sweep()
    assert accounts.index() == {made.email: (user.id, True)}


async def test_registrations_race_with_changes(accounts: Accounts) -> None:
    movers = [await accounts.make(f"m{place}@shop.example") for place in range(4)]
    attempts: list[Any] = [accounts.change(user, email=NEW) for user in movers]
    attempts += [accounts.users.create(email=NEW, name="N", password_hash=HASH, role=Role.BUYER) for _ in range(4)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    winners = [result for result in results if isinstance(result, User)]
    assert len(winners) == 1
    assert all(result is None or isinstance(result, EmailTaken) for result in results if result not in winners)
    assert accounts.index()[NEW] == (winners[0].id, True)
    assert accounts.rows("SELECT id FROM users WHERE email_folded = %s", NEW) == [winners[0].id]


async def test_two_swap_addresses_in_turns(accounts: Accounts) -> None:
    """Changes to another address and back, so that one user leaves and takes an address at the same time."""
    user = await accounts.make(OLD)
    for place in range(6):
        changed = await accounts.change(user, email=(NEW, OLD)[place % 2])
        assert changed is not None
        user = changed
    assert accounts.index() == {OLD: (user.id, True)}
    assert await login(accounts, OLD) == user.id


CHANGE_STEPS = [("claim", True), ("confirm", False), ("confirm", True), ("work_off", False), ("settle", True)]


@pytest.mark.parametrize(("step", "after"), CHANGE_STEPS)
@pytest.mark.parametrize("healed_by", ["sweeper", "the same change", "another user"])
async def test_a_crash_within_a_change(accounts: Accounts, step: str, after: bool, healed_by: str) -> None:
    user = await accounts.make(OLD)
    with dying_at(accounts.addresses, step, after=after), pytest.raises(Crash):
        await accounts.change(user, email=NEW)
    now = await accounts.users.newest(user.id)
    assert now is not None and (now.email, now.version) == ((OLD, 1) if step == "claim" else (NEW, 2))
    # In every state of the index, the present address leads to the account, and the other address to none.
    assert await login(accounts, now.email) == user.id
    other = NEW if now.email == OLD else OLD
    assert await login(accounts, other) is None
    if healed_by == "the same change":
        now = now if now.email == NEW else await accounts.change(now, email=NEW)
        assert now is not None
    accounts.age(61)
    if healed_by == "another user":
        left = OLD if now.email == NEW else NEW
        newcomer = await accounts.make(left)
        assert await login(accounts, left) == newcomer.id
        await accounts.sweep()
        assert accounts.index() == {now.email: (user.id, True), left: (newcomer.id, True)}
    else:
        await accounts.sweep()
        assert accounts.index() == {now.email: (user.id, True)}
    assert accounts.rows("SELECT email_folded FROM login_releases") == []
    assert await accounts.sweep() == 0


async def test_the_left_address_is_free_at_once_after_a_crash(accounts: Accounts) -> None:
    user = await accounts.make(OLD)
    with dying_at(accounts.addresses, "work_off"), pytest.raises(Crash):
        await accounts.change(user, email=NEW)
    assert accounts.index() == {OLD: (user.id, True), NEW: (user.id, True)}
    newcomer = await accounts.make(OLD)
    assert accounts.index() == {OLD: (newcomer.id, True), NEW: (user.id, True)}
    accounts.age(61)
    await accounts.sweep()
    assert accounts.index() == {OLD: (newcomer.id, True), NEW: (user.id, True)}


async def test_a_release_that_comes_late_leaves_a_claim_alone(accounts: Accounts) -> None:
    """The user takes the address again between the sweeper's read and its delete."""
    user = await accounts.make(OLD)
    with dying_at(accounts.addresses, "work_off"), pytest.raises(Crash):
        await accounts.change(user, email=NEW)
    looked = addresses_module.Addresses._holder

    async def meanwhile(self: Any, user_id: UUID) -> Any:
        holder = await looked(self, user_id)
        addresses_module.Addresses._holder = looked  # type: ignore[method-assign]
        now = await accounts.users.newest(user_id)
        assert now is not None
        assert await accounts.change(now, email=OLD) is not None
        return holder

    addresses_module.Addresses._holder = meanwhile  # type: ignore[method-assign]
    try:
        assert await accounts.addresses.settle(OLD, user.id) is False
    finally:
        addresses_module.Addresses._holder = looked  # type: ignore[method-assign]
    assert accounts.index() == {OLD: (user.id, True)}
    assert await login(accounts, OLD) == user.id


async def test_a_crashed_registration_is_taken_over(accounts: Accounts) -> None:
    # The claim of a registration that crashed before it inserted the user.
    claimed = uuid4()
    assert await accounts.addresses.claim(OLD, claimed) is not None
    fields: dict[str, Any] = {"email": OLD, "name": "A", "password_hash": HASH, "role": Role.BUYER}
    accounts.age(30)
    assert await accounts.users.create(**fields) is None  # the registration may still be in progress
    assert await login(accounts, OLD) is None
    accounts.age(31)
    made = await accounts.users.create(**fields)
    assert made is not None
    assert await login(accounts, OLD) == made.id
    assert await accounts.users.create(**fields) is None


async def test_a_registration_that_crashed_late_is_complete(accounts: Accounts) -> None:
    with dying_at(accounts.addresses, "confirm"), pytest.raises(Crash):
        await accounts.make(OLD)
    (user_id,) = accounts.rows("SELECT id FROM users")
    assert accounts.index() == {OLD: (user_id, False)}
    assert await login(accounts, OLD) == user_id
    accounts.age(61)
    create = {"email": OLD, "name": "B", "password_hash": HASH, "role": Role.BUYER}
    assert await accounts.users.create(**create) is None  # type: ignore[arg-type]
    assert accounts.index() == {OLD: (user_id, True)}


async def test_forsaken_claims_are_removed(accounts: Accounts) -> None:
    await accounts.addresses.claim(OLD, uuid4())
    assert await accounts.sweep() == 0
    accounts.age(61)
    await accounts.sweep()
    assert accounts.index() == {}


async def test_nothing_is_written_under_an_old_claim(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that pauses between claim and insert must not write after its claim went stale."""
    user = await accounts.make(OLD)
    monkeypatch.setattr("backoffice.users.store.CLAIM_WORK", timedelta(0))
    with pytest.raises(ClaimLapsed):
        await accounts.make(NEW)
    assert await accounts.change(user, email="other@shop.example") is None
    assert accounts.rows("SELECT email FROM users") == [OLD]
    assert await login(accounts, NEW) is None


async def test_a_slow_registration_that_lost_its_claim_leaves_nothing(accounts: Accounts) -> None:
    """Another user takes the entry over between claim and confirmation; a trigger simulates that user."""
    for dsn in accounts.databases.shard_dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION rob() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN NEW.user_id = gen_random_uuid(); RETURN NEW; END $$"
            )
            connection.execute("CREATE TRIGGER rob BEFORE INSERT ON login_index FOR EACH ROW EXECUTE FUNCTION rob()")
    try:
        made = await accounts.users.create(email=OLD, name="A", password_hash=HASH, role=Role.BUYER)
        assert made is None
        assert accounts.rows("SELECT id FROM users") == []
    finally:
        for dsn in accounts.databases.shard_dsns:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("DROP TRIGGER rob ON login_index; DROP FUNCTION rob()")


async def test_addresses_and_accounts_are_where_they_belong(accounts: Accounts) -> None:
    topology = Topology()
    for place in range(8):
        user = await accounts.make(f"u{place}@shop.example")
        shard, of_address = topology.shard_of_user(user.id), topology.shard_of_address(user.email)
        for number, dsn in enumerate(accounts.databases.shard_dsns):
            with psycopg.connect(dsn) as connection:
                users = connection.execute("SELECT count(*) FROM users WHERE id = %s", (user.id,)).fetchone()
                entries = connection.execute(
                    "SELECT count(*) FROM login_index WHERE user_id = %s", (user.id,)
                ).fetchone()
            assert (users, entries) == ((int(number == shard),), (int(number == of_address),))
