"""Faults of the servers that bring notices to buyers: mail server and push service."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from domain.notices import Channel
from faults import mailboxes
from faults.conditions import Needs, NotFired
from faults.mailboxes import Mailboxes
from faults.money_check import some
from faults.scenario import LONG, Act, Drill, Fault

ACCOUNTS: Final = 20
KNOWN_S: Final = 6.0  # until the announcer knows the first subscription
MINUTE_S: Final = 60.0
STORED_S: Final = 4.0  # until orders of the minute are stored
ARRIVE_S_MAX: Final = 160.0  # the longest delay of a push that met a minute without its service, and some
AGAIN_S: Final = 3.0  # a repeated notice would arrive within this time
BESIDE_SHARE: Final = 0.5  # of the other channel's notices, at the end of the minute: the last ones are on their way


def channel_down(channel: Channel) -> Act:
    """Refuse the connections of a channel for a minute; the other channel goes on."""

    async def act(drill: Drill) -> str:
        stage = drill.stage
        users = [user for user, _ in stage.users[stage.accounts_made :][:ACCOUNTS]]
        stage.accounts_made += len(users)
        async with mailboxes.opened(stage, users, drill.cluster) as boxes:
            await asyncio.sleep(KNOWN_S)
            return await _minute(drill, boxes, channel)

    return act


async def _minute(drill: Drill, boxes: Mailboxes, channel: Channel) -> str:
    proxy = boxes.mail_proxy if channel is Channel.EMAIL else boxes.push_proxy
    other = Channel.PUSH if channel is Channel.EMAIL else Channel.EMAIL
    proxy.refuse(refusing=True)
    proxy.cut()
    before, began, since = drill.pace(), time.monotonic(), datetime.now(UTC)
    await asyncio.sleep(MINUTE_S)
    drill.goes_on(began, before)
    until = datetime.now(UTC)
    there = {each: _arrived(boxes, each) for each in Channel}
    refused = proxy.counted["refused"]
    proxy.refuse(refusing=False)
    await asyncio.sleep(STORED_S)
    news = await boxes.news(drill.sale_id, since, until)
    wanted = {Channel.EMAIL: {each.letter for each in news}, Channel.PUSH: {each.push for each in news}}
    if not news or not refused or wanted[channel] & there[channel].keys():
        raise NotFired(f"{len(news)} orders to tell of, {refused} connections refused")
    beside = len(wanted[other] & there[other].keys())
    if beside < BESIDE_SHARE * len(news):
        drill.fail("F", f"{beside} of {len(news)} notices went out by {other} while {channel} was down")
    back = time.monotonic()
    for each in Channel:
        await _all_arrive(drill, boxes, each, wanted[each], deadline=back + ARRIVE_S_MAX)
    took_s = time.monotonic() - back
    await asyncio.sleep(AGAIN_S)
    for each in Channel:
        if again := [name for name in wanted[each] if _arrived(boxes, each)[name] > 1]:
            drill.fail("D", f"{len(again)} notices went out twice by {each}: {some(sorted(again))}")
    return (
        f"{refused} connections were refused in {MINUTE_S:.0f} s; {len(news)} notices by {channel} came within "
        f"{took_s:.0f} s after it, {beside} by {other} meanwhile"
    )


async def _all_arrive(
    drill: Drill, boxes: Mailboxes, channel: Channel, wanted: Collection[str], *, deadline: float
) -> None:
    while missing := sorted(set(wanted) - _arrived(boxes, channel).keys()):
        if time.monotonic() > deadline:
            drill.fail("D", f"{len(missing)} notices never went out by {channel}: {some(missing)}")
            return
        await asyncio.sleep(0.5)


def _arrived(boxes: Mailboxes, channel: Channel) -> Counter[str]:
    return boxes.letters() if channel is Channel.EMAIL else Counter(boxes.pushes)


_NEEDS = Needs(limits={"push_addresses_allowed": "127.0.0.0/8"})  # the drill's push service is on this machine
_EXPECTED = "all notices of the minute arrive after it, each once; the other channel is not held up"
FAULTS = [
    Fault(
        "mail-server-down-for-a-minute", "the mail server refuses all connections for a minute", _EXPECTED,
        channel_down(Channel.EMAIL), needs=_NEEDS, sale=LONG,
    ),
    Fault(
        "push-service-down-for-a-minute", "the push service of all browsers refuses connections for a minute", _EXPECTED,
        channel_down(Channel.PUSH), needs=_NEEDS, sale=LONG,
    ),
]  # fmt: skip
