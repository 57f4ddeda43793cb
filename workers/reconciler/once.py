"""One judgement on demand: looks until every sale is judged, and prints the verdicts."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from uuid import UUID

import orjson

from runtime.process import fingerprint
from runtime.process.settings import Settings
from workers.consuming import TRANSIENT
from workers.reconciler.looking import Looking
from workers.reconciler.money import MoneyLooks, MoneyVerdict
from workers.reconciler.opening import looking_of, open_clients
from workers.reconciler.verdict import Verdict

ONCE_EVERY_S = 0.5
DEEP_SHARE_ONCE = 0.5  # of one judgement: an operator waits for it


async def judge_once(settings: Settings, sale_id: UUID | None, wait_s: float, *, as_json: bool) -> int:
    """Look until every sale is judged, at most `wait_s`; print the verdicts. The exit status of the process."""
    async with open_clients(settings) as (redis, reading, apart, accounting):
        looks = MoneyLooks(accounting, shards=settings.shards, deep_every_s=0.0)
        looking = looking_of(
            reading,
            apart,
            kept_s=settings.sale_kept_s,
            stored_within_s=wait_s,
            deep_every_s=0.0,
            deep_share_max=DEEP_SHARE_ONCE,
        )
        settled_looks = 0
        deadline = time.monotonic() + wait_s
        verdicts: list[Verdict] = []
        nothing = "no published sale in Redis"
        if sale_id is not None:
            nothing = f"sale {sale_id} is not in Redis: check the id; `flashsale rebuild` restores a lost sale"
        problem = nothing
        is_checked = False
        while True:
            try:
                if not is_checked:
                    await fingerprint.check(redis, settings.topology)
                    is_checked = True
                problem = nothing
                verdicts = await _judge(looking, sale_id)
            except TRANSIENT as error:
                verdicts, problem = [], f"{type(error).__name__}: {error}"
            settled = bool(verdicts) and all(v.a is not None and v.b is not None for v in verdicts)
            settled_looks = settled_looks + 1 if settled else 0
            # A settled verdict is checked by one more deep look: the deep look before it may have been too early.
            # The last look is after the deadline, so that entries which had the whole time to be stored are judged.
            if settled_looks == 2 or (not settled and time.monotonic() > deadline):
                break
            if settled:
                looking.deep.demand()
                continue
            await asyncio.sleep(min(ONCE_EVERY_S, max(0.01, deadline - time.monotonic())))
        money = await looks.look(verdicts[0].at_ms if verdicts else 0)
    print_verdicts(verdicts, problem, one=sale_id is not None, as_json=as_json, money=money)
    return 0 if verdicts and all(verdict.is_proved for verdict in verdicts) and money.g else 1


async def _judge(looking: Looking, sale_id: UUID | None) -> list[Verdict]:
    """A deep look if one is due, then a quick one. The deep look compares with the watermarks."""
    sales = await looking.sales(only=sale_id)
    await looking.follow(sales)
    if sales and looking.deep.is_due(sale.sale_id for sale in sales):
        await looking.deep.run_pass(sales)
    return await looking.look(only=sale_id)


def print_verdicts(
    verdicts: Sequence[Verdict], problem: str, *, one: bool, as_json: bool, money: MoneyVerdict | None = None
) -> None:
    """Print verdicts, or the reason why there are none. `one`: only one sale was asked for."""
    documents = [verdict.as_document() for verdict in verdicts]
    if as_json:
        summary = {name: _all_of([document[name] for document in documents]) for name in ("A", "B")}
        answer = {**summary, "sales": documents} if documents and not one else documents[0] if documents else None
        answer = answer or {"A": None, "B": None, "detail": [problem]}
        about_money = {"G": None} if money is None else {"G": money.g, "money": list(money.detail)}
        sys.stdout.write(orjson.dumps(answer | about_money).decode() + "\n")
        return
    words = {True: "proved", False: "VIOLATED", None: "not proved yet"}
    for document in documents:
        sys.stdout.write(f"sale {document['sale_id']}: A {words[document['A']]}, B {words[document['B']]}\n")
        for line in document["detail"]:
            sys.stdout.write(f"  {line}\n")
    if not documents:
        sys.stdout.write(f"{problem}\n")
    if money is not None:
        sys.stdout.write(f"money of all sales: G {words[money.g]}\n")
        for line in money.detail:
            sys.stdout.write(f"  {line}\n")


def _all_of(values: Sequence[bool | None]) -> bool | None:
    if False in values:
        return False
    return None if None in values else True
