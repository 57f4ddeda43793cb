"""What a fault is: a name, what is done, how it is proved that it happened, what it may cause. The list is `catalogue`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from faults.checker import Expectations

if TYPE_CHECKING:
    from faults.drill import Drill

Act = Callable[["Drill"], Awaitable[str]]


class NotFired(Exception):
    """The fault did not happen, so nothing was proved; the message says what was waited for."""


class NotHere(Exception):
    """The machine does not allow the fault; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a fault's stack must be like. Faults with equal needs share a stack, one after the other."""

    limits: Mapping[str, str] = field(default_factory=dict)  # settings of all processes, lower case, without prefix
    launchers: Mapping[str, list[str]] = field(default_factory=dict)
    small_disk: bool = False  # Redis keeps its data in a small file system of its own
    own: str = ""  # a stack of its own: the fault leaves it in a state that others should not start from

    @property
    def key(self) -> str:
        """Equal for equal needs."""
        return repr(self)


@dataclass(frozen=True, slots=True)
class Sale:
    """The sale that the crowd comes to. `scarce` units of one SKU sell out on the way."""

    scarce: int = 120
    plenty: int = 50_000
    per_user_limit: int = 0
    hold_s: int = 7200  # longer than a whole run: holds that end meanwhile would stir what is compared
    cancel: float = 0.06


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `act` does it and undoes it where it does not end by itself, and answers how it is proved that it fired."""

    name: str
    about: str
    expected: str
    act: Act
    needs: Needs = field(default_factory=Needs)
    sale: Sale = field(default_factory=Sale)
    allowed: Expectations = field(default_factory=Expectations)
    heals: bool = True  # goodput must be back afterwards (F)
    fast: bool = False  # part of `make test`
