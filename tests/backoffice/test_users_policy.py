"""Permissions between a demotion and the end of the token, when the token has more rights than the account."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID, uuid4

import pytest

from backoffice.users.administrators import Administrators
from backoffice.users.model import Change
from backoffice.web.messages import Caller, Refused, Role
from domain.problems import Problem
from tests.fixtures.fix_users import RECENT_LOGIN_S, Accounts, new_service


def caller(user_id: UUID, role: Role = Role.ADMIN) -> Caller:
    return Caller(user_id, role, expires_at_s=2**40, auth_time_s=int(time.time()))


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
    accounts.rows("UPDATE users SET verified_email_folded = email_folded")
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
    processes = [new_service(accounts.stores, users, Administrators(accounts.stores), erasures) for _ in crowd]
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


async def test_sensitive_changes_need_a_recent_login(accounts: Accounts) -> None:
    """Address, role and erasure, of one's own account and of others. A name does not."""
    admin = await accounts.make("admin@shop.example", role=Role.ADMIN)
    buyer = await accounts.make("buyer@shop.example")
    now = int(time.time())
    service = accounts.service
    for user, role in ((buyer, Role.BUYER), (admin, Role.ADMIN)):
        for logged_in_s in (None, now - RECENT_LOGIN_S - 5):
            stale = Caller(user.id, role, 2**40, logged_in_s)
            works = [
                service.change_own(stale, "1.2.3.4", Change(email="new@shop.example"), None),
                service.erase(stale, user.id, None),
            ]
            if role is Role.ADMIN:
                works += [
                    service.change(stale, buyer.id, Change(email="new@shop.example"), None),
                    service.change(stale, buyer.id, Change(role=Role.STAFF), None),
                    service.erase(stale, buyer.id, None),
                ]
            for work in works:
                with pytest.raises(Refused, match="log in again") as refusal:
                    await work  # type: ignore[misc]  # some return nothing
                assert refusal.value.details.problem is Problem.FORBIDDEN
                reason = {"reason": "recent_login_required", "max_age_s": RECENT_LOGIN_S}
                assert refusal.value.details.extensions == reason
            changed = await service.change_own(stale, "1.2.3.4", Change(name="New", email=user.email.upper()), None)
            assert changed.name == "New"
    fresh = Caller(buyer.id, Role.BUYER, 2**40, now - RECENT_LOGIN_S + 5)
    assert (await service.change_own(fresh, "1.2.3.4", Change(email="new@shop.example"), None)).email_verified is False
    await service.erase(fresh, buyer.id, None)


async def test_roles_of_staff_need_a_verified_address(accounts: Accounts) -> None:
    admin = await accounts.make("admin@shop.example", role=Role.ADMIN)
    unverified = await accounts.make("unverified@shop.example", verified=False)
    verified = await accounts.make("verified@shop.example")
    service = accounts.service
    for user, change in (
        (unverified, Change(role=Role.STAFF)),
        (unverified, Change(role=Role.ADMIN)),
        (verified, Change(role=Role.STAFF, email="new@shop.example")),
    ):
        with pytest.raises(Refused, match="verified e-mail address") as refusal:
            await service.change(caller(admin.id), user.id, change, None)
        assert refusal.value.details.extensions == {"reason": "email_not_verified"}
    assert accounts.rows("SELECT 1 FROM users WHERE role = 'staff'") == []
    raised = await service.change(caller(admin.id), verified.id, Change(role=Role.STAFF), None)
    moved = await service.change(caller(admin.id), raised.id, Change(email="new@shop.example"), None)
    # A role is lowered with any address.
    assert (moved.role, moved.email_verified) == ("staff", False)
    assert (await service.change(caller(admin.id), moved.id, Change(role=Role.BUYER), None)).role == "buyer"
