"""Places for requests in progress: bounded in all and for each client that is not staff, some of them kept for staff.

A request that waits for its body holds a place without any work. When a place is missing, the one that has waited
longest is displaced, so requests whose bodies never come keep no other client out.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol


class Holder(Protocol):
    """A request in progress."""

    def displace(self) -> None:
        """End the wait for the body."""
        ...


class Places:
    """Counts requests; performs no I/O."""

    def __init__(self, *, most: int, client_most: int, kept_for_staff: int) -> None:
        """`kept_for_staff` of the `most` places are only for callers whose token has a staff role."""
        self._most = most
        self._client_most = client_most
        self._others_most = max(1, most - kept_for_staff)
        self._clients: dict[Holder, str] = {}
        self._counts: Counter[str] = Counter()
        self._waiting: dict[Holder, None] = {}  # for a body, the longest wait first

    def __len__(self) -> int:
        """The number of places taken."""
        return len(self._clients)

    def take(self, holder: Holder, client: str, *, is_staff: bool) -> bool:
        """Take a place, if need be that of another request; False when there is none."""
        if not is_staff and self._counts[client] >= self._client_most and not self._displace(of=client):
            return False
        if len(self._clients) >= (self._most if is_staff else self._others_most) and not self._displace():
            return False
        self._clients[holder] = client
        self._counts[client] += 1
        return True

    def wait_for_body(self, holder: Holder) -> None:
        """The request waits for its body from now on: it may be displaced."""
        if holder in self._clients:
            self._waiting[holder] = None

    def has_body(self, holder: Holder) -> None:
        """The body is complete."""
        self._waiting.pop(holder, None)

    def leave(self, holder: Holder) -> None:
        """Give the place back. A displaced request has lost it before."""
        self._waiting.pop(holder, None)
        client = self._clients.pop(holder, None)
        if client is not None:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]

    def _displace(self, *, of: str | None = None) -> bool:
        victim = next((holder for holder in self._waiting if of in (None, self._clients[holder])), None)
        if victim is None:
            return False
        self.leave(victim)
        victim.displace()
        return True
