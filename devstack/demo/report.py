"""The demo's report as text."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any


def as_text(report: dict[str, Any]) -> str:
    """The whole report; the last line is the verdict."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    sale, kill, counted = report["sale"], report["redis_kill"], report["recount"]
    yield (
        f"Sale        {sale['units']:,} units of {sale['skus']} SKUs, {sale['users']:,} users, "
        f"{sale['connections']} connections, {report['processors']} processors, durability {report['durability']}"
    )
    for name in ("accepted", "refused"):
        part = report[name]
        latency = "  ".join(f"{key} {value:.1f} ms" for key, value in part["latency_ms"].items())
        yield f"{name.capitalize():<11} {part['per_s']:>8,}/s  {part['count']:>9,} answers  {latency}"
    for answer in report["answers"]:
        yield f"            {answer['status']} {answer['code'] or 'accepted':<24} {answer['count']:>9,}"
    yield (
        f"Repeated    {report['repeated_requests']:,} requests with the same key after no or an unknown answer "
        f"({report['transport_errors']:,} broken connections); {report['without_answer']:,} never answered"
    )
    back = "not restarted" if kill["back_after_s"] is None else f"a new one ran after {kill['back_after_s']:.1f} s"
    yield f"Redis       killed with SIGKILL: {back}, {kill['seconds_without_orders']:.1f} s without accepted orders"
    drain = "did not end" if report["drain_s"] is None else f"{report['drain_s']:.1f} s after the last 202"
    yield f"Drain       all orders stored {drain}"
    yield (
        f"Recount     {counted['promised_and_stored']:,} of {counted['promised']:,} orders answered 202 are stored; "
        f"missing {counted['missing']}, different {counted['different']}, unasked {counted['unasked']}, "
        f"repeated {counted['repeated']}, misplaced {counted['misplaced']}, oversold {counted['oversold']}"
    )
    paid, money = report["payments"], report["money"]
    yield (
        f"Payments    {paid['orders']:,} orders, {paid['twice']} of them twice and {paid['late']} after they were cancelled: "
        f"{paid['confirmed']:,} payments, {paid['per_s']:,}/s"
    )
    yield (
        f"Money       {_price(money['captured_minor'])} captured by {money['captured']:,} events = "
        f"{_price(money['paid_minor'])} of {money['paid_orders']:,} paid orders + {_price(money['due_minor'])} due + "
        f"{_price(money['refunded_minor'])} in {money['refunds']:,} refunds"
    )
    yield (
        f"            events without a row {money['missing']}, rows without an event {money['unknown']}, "
        f"repeated {money['repeated']}, different {money['different']}, kept wrongly {money['kept_wrongly']}, "
        f"unpaid {money['unpaid']}, wrong refunds {money['wrong_refunds']}"
    )
    verdicts = report["invariants"]
    yield f"A           no oversell: {_word(verdicts['A'])}"
    yield f"B           nothing lost: {_word(verdicts['B'])}"
    yield f"G           all money accounted for: {_word(verdicts['G'])}"
    for detail in verdicts["detail"]:
        yield f"            {detail}"
    for failure in report["failures"]:
        yield f"FAILED      {failure}"
    yield "Result      " + ("FAILED" if report["failures"] else "all checks passed")


def _word(verdict: bool | None) -> str:
    return {True: "holds", False: "VIOLATED", None: "not proved"}[verdict]


def _price(minor: int) -> str:
    return f"{Decimal(minor).scaleb(-2):,.2f} EUR"
