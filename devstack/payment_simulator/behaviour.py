"""The simulator's behaviour: well by default, and every kind of bad on request. Performs no I/O.

A document of the control endpoint sets members; those that it leaves out stay as they are. Each decision follows from
the seed and the name of its object, so that a run with the same seed and orders decides the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

DOWN_S_MAX: Final = 3600
DELAY_MS_MAX: Final = 600_000
SEED_MAX: Final = 2**63 - 1
_DOWN: Final = "down_s"


class BehaviourInvalid(ValueError):
    """A document of the control endpoint is malformed; the message names the member."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Shares are of 1. `down_until_ms`: until then every answer is 503 and no webhook leaves."""

    seed: int = 0
    down_until_ms: int = 0
    slow_ms: int = 0  # added to each answer of the API
    failure_share: float = 0.0  # calls of the API that answer 503 without effect
    decline_share: float = 0.0  # payments that the buyer's bank declines
    second_share: float = 0.0  # payments that are captured twice, as two events
    mismatch_share: float = 0.0  # payments of another amount than the order's
    duplicate_share: float = 0.0  # webhooks that are sent twice although the first was acknowledged
    late_share: float = 0.0  # webhooks that leave only after the end of the hold
    reorder_share: float = 0.0  # webhooks that leave up to `reorder_ms` later, after younger ones
    reorder_ms: int = 2000
    lost_share: float = 0.0  # webhooks that never leave: only a comparison of the ledgers finds their money
    webhook_delay_ms: int = 0  # each webhook leaves after a random part of this time
    refund_error_share: float = 0.0  # calls for a refund that answer 500 after the refund
    refund_refusal_share: float = 0.0  # refunds that are refused for good

    def changed(self, document: Mapping[str, Any], *, now_ms: int) -> Behaviour:
        """This behaviour with the members of `document`. `down_s` counts from `now_ms`. Raises BehaviourInvalid."""
        values: dict[str, Any] = {}
        for name, value in document.items():
            if name == _DOWN:
                values["down_until_ms"] = now_ms + int(_number(name, value, DOWN_S_MAX) * 1000)
            elif name.endswith("_share") and name in _NAMES:
                values[name] = float(_number(name, value, 1))
            elif (name.endswith("_ms") and name in _NAMES and name != "down_until_ms") or name == "seed":
                if type(value) is not int:
                    raise BehaviourInvalid(f"{name}: not an integer")
                values[name] = _number(name, value, SEED_MAX if name == "seed" else DELAY_MS_MAX)
            else:
                raise BehaviourInvalid(f"{name[:40]!r}: no such member")
        return replace(self, **values)

    def document(self) -> dict[str, Any]:
        """All members, as stored."""
        return asdict(self)

    @classmethod
    def stored(cls, document: Mapping[str, Any]) -> Behaviour:
        """A stored behaviour, perhaps of an earlier version."""
        return cls(**{name: value for name, value in document.items() if name in _NAMES})

    def is_down(self, now_ms: int) -> bool:
        """Whether the provider does not answer now."""
        return now_ms < self.down_until_ms

    def happens(self, kind: str, name: str) -> bool:
        """Whether `<kind>_share` hits the object of this name."""
        share: float = getattr(self, f"{kind}_share")
        return self.fraction(kind, name) < share

    def fraction(self, kind: str, name: str) -> float:
        """A number from 0 to below 1 that follows from the seed, the kind of a decision, and a name."""
        digest = hashlib.blake2b(f"{self.seed}:{kind}:{name}".encode(), digest_size=6).digest()
        return int.from_bytes(digest) / 2**48


_NAMES: Final = frozenset(field.name for field in fields(Behaviour))


def _number(name: str, value: Any, most: int) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise BehaviourInvalid(f"{name}: not a number from 0 to {most}")
    return value
