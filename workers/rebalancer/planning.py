"""Decides which units of one SKU move between the lanes of a sale. Performs no I/O, remembers nothing.

Each lane should have a share of the units: half of them are shared equally, half by the lanes' sales of late. A lane
below half of its share gets units from the lanes above theirs, so units move before the lane is empty, and in smaller
steps as the stock shrinks. With fewer units than lanes only wanted units move: to a lane that refused a buyer for
want of units, out of lanes without such a buyer first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

LOW_SHARE = 0.5  # of its share: a lane with less gets units
BY_SALES = 0.5  # part of the units that is shared by sales


@dataclass(frozen=True, slots=True)
class Place:
    """One SKU in one lane. `wanted`: the largest quantity that was refused; `sales`: units sold of late, weighted."""

    lane: int
    available: int
    wanted: int = 0
    sales: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """Units to move from one lane to another."""

    source: int
    destination: int
    units: int


def plan(places: Sequence[Place], *, kept: Collection[int] = ()) -> list[Move]:
    """Moves of one SKU, at most one between two lanes. `kept`: lanes whose units wait for a buyer who was refused."""
    units = sum(place.available for place in places)
    shares = _shares(places, units)
    spare = {place.lane: place.available for place in places}
    moves: dict[tuple[int, int], int] = {}

    def take(destination: Place, need: int, sources: Sequence[Place], *, above_share: bool) -> int:
        for source in sorted(sources, key=lambda place: -spare[place.lane]):
            kept_back = math.ceil(shares[source.lane]) if above_share else 0
            taken = min(need, spare[source.lane] - kept_back)
            if taken > 0:
                spare[source.lane] -= taken
                pair = source.lane, destination.lane
                moves[pair] = moves.get(pair, 0) + taken
                need -= taken
        return need

    wanting = [place for place in places if place.available < place.wanted <= units]
    # The lane that lacks least is served first: units spread over many wanting lanes would serve no buyer.
    wanting.sort(key=lambda place: place.wanted - place.available)
    served: set[int] = set()
    for place in wanting:
        if (place.lane, spare[place.lane]) != (place.lane, place.available):
            continue  # its own units have gone to a lane that lacked less
        served.add(place.lane)
        others = [other for other in places if other.lane not in served and other.lane not in kept]
        idle = [other for other in others if other.available >= other.wanted]
        need = take(place, place.wanted - place.available, idle, above_share=False)
        if need:
            take(place, need, [other for other in others if other not in idle], above_share=False)
    for place in places:
        need = math.floor(shares[place.lane]) - place.available - _incoming(moves, place.lane)
        if need > 0 and place.available < LOW_SHARE * shares[place.lane]:
            # A lane either lends or gets units.
            givers = {source for source, _ in moves}
            takers = {destination for _, destination in moves}
            if place.lane in givers:
                continue
            sources = [
                other for other in places if other.lane != place.lane and other.lane not in {*kept, *takers, *served}
            ]
            take(place, need, sources, above_share=True)
    return [Move(source, destination, count) for (source, destination), count in moves.items()]


def _incoming(moves: dict[tuple[int, int], int], lane: int) -> int:
    return sum(units for (_, destination), units in moves.items() if destination == lane)


def _shares(places: Sequence[Place], units: int) -> dict[int, float]:
    sales = sum(place.sales for place in places)
    by_sales = BY_SALES if sales else 0.0
    equal = (1 - by_sales) / len(places)
    return {place.lane: units * (equal + (by_sales * place.sales / sales if sales else 0)) for place in places}
