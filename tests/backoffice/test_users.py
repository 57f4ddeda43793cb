"""Accounts over HTTP: own and other accounts, versions, permissions, refusals."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from backoffice.limits.attempts import ADDRESS_ACCOUNT, MAIL_ADDRESS
from backoffice.users.sweeper import PERIOD_S
from domain.topology import Topology
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_people import People
from tests.fixtures.fix_users import HASH


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_own_account(people: People) -> None:
    ada = people.make(email="Ada@Shop.example")
    read = ada.http.get("/v1/users/me")
    user = read.json()
    assert user == {
        "id": str(ada.id),
        "email": "Ada@Shop.example",
        "name": "Ada",
        "role": "buyer",
        "created_at": user["created_at"],
        "email_verified": True,
    }
    assert (read.headers["etag"], read.headers["cache-control"]) == ('"1"', "private, no-cache")
    known = ada.http.get("/v1/users/me", headers={"If-None-Match": '"1"'})
    assert (known.status_code, known.content) == (304, b"")
    renamed = ada.http.patch("/v1/users/me", json={"name": "Ada Lovelace"})
    assert renamed.status_code == 200
    assert renamed.json() == {**user, "name": "Ada Lovelace"}
    assert renamed.headers["etag"] == '"2"'
    moved = ada.http.patch("/v1/users/me", json={"email": "ada@other.example", "name": "A"})
    expected = {**user, "name": "A", "email": "ada@other.example", "email_verified": False}
    assert moved.json() == expected == ada.me()
    # A change without a difference makes no new version.
    for body in ({}, {"name": "A"}, {"email": "ada@other.example"}):
        same = ada.http.patch("/v1/users/me", json=body)
        assert (same.status_code, same.headers["etag"]) == (200, '"3"')


def test_if_match_is_honoured_when_given(people: People) -> None:
    admin, ada = people.make("admin"), people.make()
    for http, path in ((ada.http, "/v1/users/me"), (admin.http, f"/v1/users/{ada.id}")):
        version = int(http.get(path).headers["etag"].strip('"'))
        for tag in (f'"{version + 1}"', f'W/"{version}"', str(version), '""', "x", '*, "1"'):
            for answer in (
                http.patch(path, json={"name": "X"}, headers={"If-Match": tag}),
                http.delete(path, headers={"If-Match": tag}),
            ):
                assert code(answer) == (412, "precondition_failed"), tag
        assert http.get(path).json()["name"] == "Ada" if http is ada.http else "Ada 1"
        changed = http.patch(path, json={"name": f"Ada {version}"}, headers={"If-Match": f'"7", "{version}"'})
        assert (changed.status_code, changed.headers["etag"]) == (200, f'"{version + 1}"')
        assert http.patch(path, json={"name": f"Ada {version}"}, headers={"If-Match": "*"}).status_code == 200
    # The address of a refused change stays free.
    assert code(ada.http.patch("/v1/users/me", json={"email": "b@c.example"}, headers={"If-Match": '"1"'}))[0] == 412
    assert people.make(email="b@c.example").me()["email"] == "b@c.example"


def test_changes_in_parallel_are_all_made(people: People) -> None:
    ada = people.make()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: ada.http.patch("/v1/users/me", json={"name": f"N{n}"}), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert ada.http.get("/v1/users/me").headers["etag"] == '"5"'


def test_an_address_goes_to_one(people: People) -> None:
    crowd = [people.make() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda p: p.http.patch("/v1/users/me", json={"email": "one@x.example"}), crowd))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"email_taken"}
    assert [person.me()["email"] for person in crowd].count("one@x.example") == 1
    admin = people.make("admin")
    assert len(admin.http.get("/v1/users", params={"email": "ONE@x.example"}).json()["items"]) == 1


def test_trying_addresses_is_limited(people: People) -> None:
    """A change of address reveals whether the new address is in use, and sends a mail to it."""
    taken = people.make(email="taken@shop.example")
    ada = people.make()
    answers = [
        ada.http.patch("/v1/users/me", json={"email": f"guess{place}@shop.example"})
        for place in range(ADDRESS_ACCOUNT.attempts_max)
    ]
    assert {answer.status_code for answer in answers} == {200}
    for email in ("one.more@shop.example", taken.email):
        limited = ada.http.patch("/v1/users/me", json={"email": email, "name": "X"})
        assert code(limited) == (429, "rate_limited")
        assert 1 <= int(limited.headers["retry-after"]) <= ADDRESS_ACCOUNT.window_s
    # A change without a mail is not limited.
    for body in ({"name": "Still Ada"}, {"email": ada.me()["email"].upper()}):
        assert ada.http.patch("/v1/users/me", json=body).status_code == 200
    # Many accounts, one mailbox.
    crowd, target = [people.make() for _ in range(MAIL_ADDRESS.attempts_max + 1)], people.make().email
    codes = [p.http.patch("/v1/users/me", json={"email": target}).status_code for p in crowd]
    assert codes == [409] * MAIL_ADDRESS.attempts_max + [429]


def test_staff_see_all_accounts(people: People) -> None:
    staff = people.make("staff")
    crowd = [people.make() for _ in range(9)]
    first = staff.http.get("/v1/users", params={"limit": 4}).json()
    late = people.make()  # a registration does not shift the next page
    seen, cursor = first["items"], first["next_cursor"]
    while cursor is not None:
        page = staff.http.get("/v1/users", params={"limit": 4, "cursor": cursor}).json()
        assert len(page["items"]) == 4 or page["next_cursor"] is None
        seen, cursor = seen + page["items"], page["next_cursor"]
    assert [user["id"] for user in seen] == sorted((str(p.id) for p in (staff, *crowd)), reverse=True)
    one = staff.http.get(f"/v1/users/{late.id}")
    assert one.json() == late.me()
    assert one.headers["etag"] == '"1"'
    assert staff.http.get(f"/v1/users/{late.id}", headers={"If-None-Match": '"1"'}).status_code == 304


def test_lists_are_filtered(people: People) -> None:
    staff, admin = people.make("staff"), people.make("admin")
    ada = people.make(email="Ada@Shop.example")

    def listed(**parameters: str) -> list[str]:
        answer = staff.http.get("/v1/users", params=parameters)
        assert answer.status_code == 200, answer.text
        return [user["id"] for user in answer.json()["items"]]

    assert listed(email="ada@shop.EXAMPLE") == [str(ada.id)]
    assert listed(email="ada@shop.example", role="buyer") == [str(ada.id)]
    assert listed(email="ada@shop.example", role="admin") == []
    assert listed(role="buyer") == [str(ada.id)]
    assert listed(role="staff") == [str(staff.id)]
    assert listed(role="admin") == [str(admin.id)]
    for nobody in ("", "ada", "%", "ada@shop.example\x00", "\u0430da@shop.example", "' OR 1=1 --"):
        assert listed(email=nobody) == [], nobody
    for parameters in ({"role": "god"}, {"role": "BUYER"}, {"email": "a" * 255}, {"limit": "0"}, {"limit": "201"}):
        assert code(staff.http.get("/v1/users", params=parameters)) == (422, "validation_failed")


def test_cursors_of_other_lists_are_refused(people: People) -> None:
    staff = people.make("staff")
    people.make()
    own = staff.http.get("/v1/users", params={"limit": 1}).json()["next_cursor"]
    assert code(staff.http.get("/v1/orders", params={"cursor": own})) == (422, "validation_failed")
    for cursor in ("", "x", own + "A", own[:-2], "\u00e9", "a" * 600):
        assert code(staff.http.get("/v1/users", params={"cursor": cursor})) == (422, "validation_failed"), cursor


def test_changes_allowed_to_staff(people: People) -> None:
    staff, admin, other, buyer = (people.make(role) for role in ("staff", "admin", "staff", "buyer"))
    path = "/v1/users/{}".format
    # Staff and administrators erase buyers, only administrators erase staff, every caller its own account.
    assert staff.http.patch(path(buyer.id), json={"name": "B"}).json()["name"] == "B"
    assert staff.http.patch(path(staff.id), json={"name": "S"}).json()["name"] == "S"
    for target in (other, admin):
        for body in ({"name": "X"}, {"email": "mine@x.example"}, {}):
            assert code(staff.http.patch(path(target.id), json=body)) == (403, "forbidden")
        assert code(staff.http.delete(path(target.id))) == (403, "forbidden")
    for target, role in ((staff, "admin"), (buyer, "staff"), (buyer, "buyer"), (other, "buyer"), (admin, "buyer")):
        assert code(staff.http.patch(path(target.id), json={"role": role})) == (403, "forbidden")
    assert code(buyer.http.patch(path(buyer.id), json={"name": "X"})) == (403, "forbidden")
    assert (other.me()["name"], admin.me()["name"], buyer.me()["role"]) == ("Ada", "Ada", "buyer")
    assert admin.http.patch(path(other.id), json={"name": "O", "role": "buyer"}).json()["role"] == "buyer"
    assert admin.http.patch(path(buyer.id), json={"role": "staff"}).json()["role"] == "staff"
    assert staff.http.get("/v1/users", params={"role": "staff"}).json()["items"][0]["id"] == str(buyer.id)


def test_callers_cannot_raise_their_own_role(people: People) -> None:
    admin, fallen = people.make("admin"), people.make("admin")
    for person in (people.make(), people.make("staff"), admin):
        for body in ({"role": "admin"}, {"name": "X", "role": "admin"}, {"id": str(uuid4())}, {"version": 9}):
            answer = person.http.patch("/v1/users/me", json=body)
            assert code(answer) == (422, "validation_failed")
        assert person.me()["name"] == "Ada"
    assert admin.http.patch(f"/v1/users/{fallen.id}", json={"role": "buyer"}).status_code == 200
    # The token carries the admin role for some more minutes; the account does not have it.
    for target in (fallen, admin):
        for body in ({"role": "admin"}, {"role": "buyer"}, {"role": "admin", "name": "X"}):
            answer = fallen.http.patch(f"/v1/users/{target.id}", json=body)
            assert answer.status_code in (401, 403)
    assert fallen.http.patch(f"/v1/users/{admin.id}", json={"email": "mine@x.example"}).status_code in (401, 403)
    assert fallen.http.delete(f"/v1/users/{admin.id}").status_code in (401, 403)
    assert admin.http.get(f"/v1/users/{fallen.id}").json()["role"] == "buyer"
    assert (admin.me()["role"], admin.me()["email"]) == ("admin", admin.email)


def test_the_last_administrator_stays(people: People) -> None:
    first, second = people.make("admin"), people.make("admin")
    outsider = people.client("admin", uuid4())  # of an outside issuer: no account here
    lowered = first.http.patch(f"/v1/users/{first.id}", json={"role": "staff"})
    assert (lowered.status_code, lowered.json()["role"]) == (200, "staff")
    path = f"/v1/users/{second.id}"
    for http in (second.http, outsider):
        for role in ("staff", "buyer"):
            assert code(http.patch(path, json={"role": role, "name": "X"})) == (403, "forbidden")
        assert code(http.delete(path)) == (403, "forbidden")
    assert code(second.http.delete("/v1/users/me")) == (403, "forbidden")
    assert second.me() == {**second.me(), "role": "admin", "name": "Ada"}
    assert second.http.patch(path, json={"name": "Still here", "role": "admin"}).status_code == 200


def test_of_two_last_administrators_one_stays(people: People, databases: Databases) -> None:
    for _ in range(5):
        databases.empty()
        pair = [people.make("admin"), people.make("admin")]
        with ThreadPoolExecutor(2) as pool:
            leaving = (
                pool.submit(pair[0].http.patch, f"/v1/users/{pair[0].id}", json={"role": "buyer"}),
                pool.submit(pair[1].http.delete, "/v1/users/me"),
            )
            answers = [answer.result() for answer in leaving]
        assert sorted(answer.status_code for answer in answers) in ([200, 403], [204, 403])
        outsider = people.client("admin", uuid4())
        assert len(outsider.get("/v1/users", params={"role": "admin"}).json()["items"]) == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": " \u00a0\u2003"}, "/name"),
        ({"name": "\u200b\u200d"}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"name": 1}, "/name"),
        ({"name": ["x"]}, "/name"),
        ({"name": "a\r\nSet-Cookie: x=1"}, "/name"),
        ({"name": "a\u2028b"}, "/name"),
        ({"name": "a\x00"}, "/name"),
        ({"name": "gro.live\u202eada"}, "/name"),
        ({"name": "\u2066ada"}, "/name"),
        ({"email": "a"}, "/email"),
        ({"email": "a@b.example\r\nBcc: x@y.example"}, "/email"),
        ({"email": "a@b.example\n"}, "/email"),
        ({"email": "\u0430@b.example"}, "/email"),
        ({"email": "a@\u0431.example"}, "/email"),
        ({"email": "\uff41@b.example"}, "/email"),
        ({"email": "K\u212a@b.example"}, "/email"),
        ({"email": "a@b.example\x00"}, "/email"),
        ({"email": "x" * 250 + "@b.example"}, "/email"),
        ({"email": {"a": 1}}, "/email"),
        ({"password": "a new password"}, "/password"),
        ({"created_at": "2020-01-01T00:00:00Z"}, "/created_at"),
        ({"nam\u0435": "x"}, "/nam\u0435"),
    ],
)
def test_changes_that_are_not_valid(people: People, body: dict[str, Any], pointer: str) -> None:
    admin, ada = people.make("admin"), people.make()
    before = ada.me()
    for http, path in ((ada.http, "/v1/users/me"), (admin.http, f"/v1/users/{ada.id}")):
        answer = http.patch(path, json=body)
        assert code(answer) == (422, "validation_failed")
        assert answer.json()["errors"][0]["pointer"] == pointer
    assert ada.me() == before


def test_bodies_that_are_none(people: People) -> None:
    admin, ada = people.make("admin"), people.make()
    before = ada.me()
    for http, path in ((ada.http, "/v1/users/me"), (admin.http, f"/v1/users/{ada.id}")):

        def sent(content: bytes, media_type: str = "application/json", **headers: str) -> tuple[int, str]:
            sent = {"Content-Type": media_type, **headers}
            return code(http.patch(path, content=content, headers=sent))  # noqa: B023

        assert sent(b"{") == (400, "malformed_request")
        assert sent(b"") == (400, "malformed_request")
        assert sent(b'{"name": "\xff"}') == (400, "malformed_request")
        assert sent(b'{"name": "\\ud800"}')[0] in (400, 422)
        for other in (b"[]", b'"x"', b"null", b"1", b'{"name": null}', b'{"email": null}'):
            assert sent(other) == (422, "validation_failed"), other
        assert sent(b'{"name": "X"}', "text/plain") == (415, "unsupported_media_type")
        assert sent(b'{"name": "X"}', **{"Content-Encoding": "gzip"}) == (415, "unsupported_media_type")
        assert sent(b'{"name": "' + b"x" * 1024 * 1024 + b'"}') == (413, "body_too_large")
    assert ada.me() == before


@pytest.mark.parametrize(
    "user_id",
    [
        "x",
        "me2",
        "1",
        str(UUID(int=0xABCDEF << 96, version=4)).upper()[:-1],
        "{id}",
        "%00",
        "..",
        "01890000-0000-8000-8000-000000000001",  # in the format of an order id
        "' OR 1=1 --",
        "\u0661",
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_ids_without_an_account(people: People, user_id: str) -> None:
    admin = people.make("admin")
    path = f"/v1/users/{user_id}"
    answers = (
        admin.http.get(path),
        admin.http.patch(path, json={"name": "X"}),
        admin.http.delete(path),
    )
    for answer in answers:
        assert code(answer) in ((404, "user_not_found"), (404, "not_found"))


def test_tokens_without_an_account(people: People) -> None:
    for role in ("buyer", "staff", "admin"):
        http = people.client(role, uuid4())
        for answer in (
            http.get("/v1/users/me"),
            http.patch("/v1/users/me", json={"name": "X"}),
            http.delete("/v1/users/me"),
        ):
            assert code(answer) == (404, "user_not_found")


def test_the_process_sweeps(people: People, databases: Databases) -> None:
    """The sweeper finishes interrupted work without a request."""
    ada = people.make()
    dsn = databases.shard_dsns[Topology().shard_of_address("left@shop.example")]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO login_index (email_folded, user_id, claimed_at) "
            "VALUES ('left@shop.example', gen_random_uuid(), now() - interval '1 hour')"
        )
        deadline = time.monotonic() + 4 * PERIOD_S
        while connection.execute("SELECT 1 FROM login_index WHERE email_folded = 'left@shop.example'").fetchone():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "flashsale_backoffice_sweeper_repairs_total" in ada.http.get("/metrics").text


def test_a_person_is_not_in_the_log(people: People, backoffice: BackofficeProcess) -> None:
    admin = people.make("admin")
    ada = people.make(email="augusta.ada@byron.example", name="Augusta Ada King-Noel")
    ada.http.patch("/v1/users/me", json={"email": "countess@lovelace.example"})
    ada.http.patch("/v1/users/me", json={"email": admin.email})
    ada.http.patch("/v1/users/me", json={"email": "countess@lovelace.example\x00", "name": "King-Noel\x00"})
    admin.http.get("/v1/users", params={"email": "countess@lovelace.example"})
    assert admin.http.delete(f"/v1/users/{ada.id}").status_code == 204
    log = backoffice.log
    assert str(ada.id) in log  # the record of the erasure
    for word in ("augusta", "byron", "countess", "lovelace", "King-Noel", HASH):
        assert word not in log
