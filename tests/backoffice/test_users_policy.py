"""Permissions between a demotion and the end of the token, when the token has more rights than the account."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from backoffice.limits.attempts import Attempts
from backoffice.users.administrators import Administrators
from backoffice.users.model import Change
from backoffice.users.service import UserService
from backoffice.web.messages import Caller, Refused, Role
from domain.problems import Problem
from tests.fixtures.fix_users import Accounts


def caller(user_id: UUID, role: Role = Role.ADMIN) -> Caller:
    return Caller(user_id, role, expires_at_s=2**40)


async def refused(work: object) -> Problem:
    with pytest.raises(Refused) as refusal:
        await work  # type: ignore[misc]
    return refusal.value.details.problem


async def test_a_token_does_not_undo_a_demotion(accounts: Accounts) -> None:
    admin = await accounts.make("admin@shop.example", role=Role.ADMIN)
    fallen = await accounts.make("fallen@shop.example", role=Role.ADMIN)
    gone = await accounts.make("gone@shop.example", role=Role.ADMIN)
    lowered = await accounts.service.change(caller(admin.id), fallen.id, Change(role=Role.STAFF), None)
    assert (lowered.role, accounts.ended) == ("staff", [fallen.id])
    await accounts.service.erase(caller(admin.id), gone.id, None)
    for stale in (fallen.id, gone.id):
        for change in (Change(role=Role.ADMIN), Change(email="mine@x.example"), Change(name="X")):
            assert await refused(accounts.service.change(caller(stale), admin.id, change, None)) is Problem.FORBIDDEN
        assert await refused(accounts.service.erase(caller(stale), admin.id, None)) is Problem.FORBIDDEN
    raised = accounts.service.change(caller(fallen.id), fallen.id, Change(role=Role.ADMIN), None)
    assert await refused(raised) is Problem.FORBIDDEN
    assert await accounts.users.newest(admin.id) == admin
    assert await accounts.users.newest(fallen.id) == lowered


async def test_a_caller_without_an_account_is_judged_by_the_token(accounts: Accounts) -> None:
    """Tokens of an outside issuer."""
    user = await accounts.make()
    assert (await accounts.service.change(caller(uuid4()), user.id, Change(role=Role.STAFF), None)).role == "staff"
    of_staff = caller(uuid4(), Role.STAFF)
    assert await refused(accounts.service.change(of_staff, user.id, Change(name="X"), None)) is Problem.FORBIDDEN


async def test_a_role_that_stays_ends_no_token(accounts: Accounts) -> None:
    admin = await accounts.make("admin@shop.example", role=Role.ADMIN)
    user = await accounts.make()
    await accounts.service.change(caller(admin.id), user.id, Change(name="X", role=Role.BUYER), None)
    await accounts.service.change(caller(admin.id), user.id, Change(email="y@shop.example"), None)
    assert accounts.ended == []
    await accounts.service.change(caller(admin.id), user.id, Change(role=Role.STAFF), None)
    assert accounts.ended == [user.id]


async def test_a_refused_change_ends_no_token(accounts: Accounts) -> None:
    admin = await accounts.make("admin@shop.example", role=Role.ADMIN)
    work = (
        accounts.service.change(caller(admin.id), admin.id, Change(role=Role.BUYER), None),
        accounts.service.change(caller(admin.id), admin.id, Change(role=Role.BUYER), [7]),
        accounts.service.erase(caller(admin.id), admin.id, None),
    )
    assert [await refused(one) for one in work] == [
        Problem.FORBIDDEN,
        Problem.PRECONDITION_FAILED,
        Problem.FORBIDDEN,
    ]
    assert accounts.ended == []


async def test_administrators_leave_one_after_the_other(accounts: Accounts) -> None:
    """Concurrent demotions and erasures of all administrators, each in its own process: one administrator remains."""
    crowd = [await accounts.make(f"a{place}@shop.example", role=Role.ADMIN) for place in range(4)]
    users, erasures = accounts.users, accounts.erasures
    processes = [
        UserService(users, Administrators(accounts.stores, users), erasures, Attempts(accounts.stores.cache))
        for _ in crowd
    ]
    results = await asyncio.gather(
        *(
            process.change(caller(user.id), user.id, Change(role=Role.BUYER), None)
            if place % 2
            else process.erase(caller(user.id), user.id, None)
            for place, (user, process) in enumerate(zip(crowd, processes, strict=True))
        ),
        return_exceptions=True,
    )
    refusals = [result for result in results if isinstance(result, BaseException)]
    assert [refusal.details.problem for refusal in refusals if isinstance(refusal, Refused)] == [Problem.FORBIDDEN]
    assert len(refusals) == 1
    assert len(accounts.rows("SELECT id FROM users WHERE role = 'admin'")) == 1
