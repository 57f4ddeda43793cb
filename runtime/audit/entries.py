"""Entries of the audit log as values: actions, names of objects, the changed members. Performs no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import orjson

DONE: Final = "done"
BEGUN: Final = "begun"  # before a change that no transaction holds; another entry tells its outcome
UNKNOWN_OBJECT: Final = "unknown"
ELEMENTS_MAX: Final = 500  # of a list whose elements are bounded one by one; a longer list is one value
VALUE_BYTES_MAX: Final = 4000  # of one member as JSON, or of one element of a list; of more, length and hash are kept


class Action(StrEnum):
    """All actions that leave an entry: `subject.verb`."""

    USER_REGISTER = "user.register"
    USER_LOGIN = "user.login"
    USER_REFRESH = "user.refresh"
    USER_LOGOUT = "user.logout"
    USER_TOKEN_REUSED = "user.token_reused"
    USER_PASSWORD_CHANGE = "user.password_change"
    USER_PASSWORD_RESET = "user.password_reset"
    USER_VERIFY_EMAIL = "user.verify_email"
    USER_UNDO_EMAIL = "user.undo_email_change"
    USER_CHANGE = "user.change"
    USER_ROLE = "user.role"
    USER_ERASE = "user.erase"
    USER_END_SESSIONS = "user.end_sessions"
    PRODUCT_CREATE = "product.create"
    PRODUCT_CHANGE = "product.change"
    PRODUCT_DELETE = "product.delete"
    PRODUCT_IMPORT = "product.import"
    SALE_CREATE = "sale.create"
    SALE_CHANGE = "sale.change"
    SALE_DELETE = "sale.delete"
    SALE_PUBLISH = "sale.publish"
    SALE_PAUSE = "sale.pause"
    SALE_RESUME = "sale.resume"
    SALE_END = "sale.end"
    SALE_RESTOCK = "sale.restock"
    SALE_REBUILD = "sale.rebuild"
    ORDER_CANCEL = "order.cancel"
    ORDER_REFUND = "order.refund"
    DEAD_LETTER_REPLAY = "dead_letter.replay"
    DEAD_LETTER_DELETE = "dead_letter.delete"
    EVENTS_REPLAY = "events.replay"
    FIGURES_REBUILD = "figures.rebuild"
    BACKUP_CREATE = "backup.create"
    WEBHOOK_CREATE = "webhook.create"
    WEBHOOK_DELETE = "webhook.delete"
    WEBHOOK_ENABLE = "webhook.enable"
    WEBHOOK_DISABLE = "webhook.disable"
    WEBHOOK_ROTATE = "webhook.rotate_secret"
    WEBHOOK_PING = "webhook.ping"
    WEBHOOK_REPLAY = "webhook.replay"
    KEYS_ROTATE = "keys.rotate"
    AUDIT_EXPORT = "audit.export"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """An entry to record. `actor`, when None, is the actor of the act (`runtime.audit.acts`).

    `before` and `after` hold only members that changed, and no personal data: entries outlive an erased account.
    """

    action: Action
    object: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    actor: str | None = None
    outcome: str = DONE


def object_name(kind: str, id_: UUID | str) -> str:
    """`kind:id`."""
    return f"{kind}:{id_}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The members of `after` that differ from `before`, with the old and with the new values."""
    # As JSON: in Python, true and 1 are equal.
    changed = [name for name, value in after.items() if _bytes(before.get(name)) != _bytes(value)]
    return {name: before.get(name) for name in changed}, {name: after[name] for name in changed}


def members_json(members: Mapping[str, Any] | None) -> str | None:
    """The members as JSON, long values replaced by their length and hash; None for None."""
    if members is None:
        return None
    return orjson.dumps({name: _bounded(value) for name, value in members.items()}).decode()


def _bounded(value: Any) -> Any:
    if isinstance(value, list) and len(value) <= ELEMENTS_MAX:  # all prices of a sale must be readable
        return [_bounded_whole(element) for element in value]
    return _bounded_whole(value)


def _bounded_whole(value: Any) -> Any:
    if isinstance(value, str):
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    content = _content(value)
    if content is not None and len(content) <= VALUE_BYTES_MAX:
        return orjson.Fragment(content)
    content = content or _bytes(value)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _bytes(value: Any) -> bytes:
    return _content(value) or repr(value).encode(errors="backslashreplace")


def _content(value: Any) -> bytes | None:
    """The value as JSON; None for one that orjson refuses, such as an integer of more than 64 bits.

    A change must not fail because of an old value, which an operator may have written with SQL.
    """
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None


def _plain(value: Any) -> str:
    assert isinstance(value, UUID | date | datetime), type(value)
    return str(value)
