"""Notices: messages to a person, on their way from a shard's outbox to a sender. Performs no I/O.

A notice never carries a secret. It has the kind of the message and the recipient; the token of a mailed link is made
together with the mail, so that no table, queue or dead letter ever holds one. It goes to an account (`user_id`) or to
the account of an address (`email_folded`): the notification worker then finds out whether such an account exists, and
the caller does not learn it. The notice that an account has left an address has both: it goes to the address, and its
link undoes the change of the account.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from domain import ids

NOTICE_SCHEMA = 1


class NoticeKind(StrEnum):
    """Kinds of notices. Stored in outboxes and queues: never renamed."""

    VERIFY_EMAIL = "verify_email"
    PASSWORD_RESET = "password_reset"
    PASSWORD_CHANGED = "password_changed"
    EMAIL_CHANGED = "email_changed"


class MalformedNotice(ValueError):
    """The bytes are not a notice of a schema that this code knows."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One of `user_id` and `email_folded` is set, for EMAIL_CHANGED both. `id` is a UUIDv7: a newer one is greater."""

    id: UUID
    kind: NoticeKind
    user_id: UUID | None = None
    email_folded: str | None = None

    @property
    def key(self) -> str:
        """User id or address: selects the partition."""
        return str(self.user_id) if self.user_id is not None else str(self.email_folded)


def notice_to_user(kind: NoticeKind, user_id: UUID) -> Notice:
    """A new notice to an account."""
    return Notice(ids.new_uuid7(), kind, user_id=user_id)


def notice_to_address(kind: NoticeKind, email_folded: str) -> Notice:
    """A new notice to the account of an address, if there is one."""
    return Notice(ids.new_uuid7(), kind, email_folded=email_folded)


def notice_of_left_address(user_id: UUID, email_folded: str) -> Notice:
    """A new notice to the address that an account has just left."""
    return Notice(ids.new_uuid7(), NoticeKind.EMAIL_CHANGED, user_id=user_id, email_folded=email_folded)


def notice_event(notice: Notice) -> dict[str, Any]:
    """The event of an outbox row."""
    to: dict[str, str] = {}
    if notice.user_id is not None:
        to["user_id"] = str(notice.user_id)
    if notice.email_folded is not None:
        to["email"] = notice.email_folded
    return {
        "id": str(notice.id),
        "type": f"notice.{notice.kind.value}",
        "schema": NOTICE_SCHEMA,
        "key": notice.key,
        "data": to,
    }


def parse_notice(body: bytes) -> Notice:
    """Inverse of `notice_event` and `json`; MalformedNotice for anything else."""
    try:
        event = json.loads(body)
        schema, data = event["schema"], event["data"]
        kind = NoticeKind(event["type"].removeprefix("notice."))
        notice_id = ids.parse_uuid(event["id"])
        user_id, email = data.get("user_id"), data.get("email")
        user = None if user_id is None else ids.parse_uuid(user_id)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedNotice("not a notice") from error
    if schema != NOTICE_SCHEMA:
        raise MalformedNotice(f"schema {schema}")
    parts = (user_id is not None) + (email is not None)
    wanted = 2 if kind is NoticeKind.EMAIL_CHANGED else 1
    if notice_id is None or parts != wanted or (user_id is not None and user is None):
        raise MalformedNotice("ids")
    if email is not None and not (isinstance(email, str) and email.isascii() and email.isprintable()):
        raise MalformedNotice("email")  # PostgreSQL would refuse a NUL at each attempt
    return Notice(notice_id, kind, user, email)
