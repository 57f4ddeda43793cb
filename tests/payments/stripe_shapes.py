"""Documents of Stripe as its API and its webhooks have them, shortened to the members that matter and some others."""

from __future__ import annotations

from typing import Any

ORDER = "0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
SESSION: dict[str, Any] = {
    "id": "cs_test_a1YS1URlnyQCN5fUUduORoQ7Pw41PJqDWkIVQCpJPqkfIhd6tVY8XB1OLY",
    "object": "checkout.session",
    "amount_subtotal": 1999,
    "amount_total": 1999,
    "client_reference_id": ORDER,
    "currency": "eur",
    "customer": None,
    "livemode": False,
    "metadata": {"order_id": ORDER},
    "mode": "payment",
    "payment_intent": "pi_3QhvXNB7WZ01zgkW0vvkaG12",
    "payment_status": "paid",
    "status": "complete",
    "url": None,
}
EVENT: dict[str, Any] = {
    "id": "evt_1NG8Du2eZvKYlo2CUI79vXWy",
    "object": "event",
    "api_version": "2026-10-28.endive",
    "created": 1686089970,
    "data": {"object": SESSION},
    "livemode": False,
    "pending_webhooks": 1,
    "request": {"id": None, "idempotency_key": None},
    "type": "checkout.session.completed",
}
OPEN_SESSION = SESSION | {
    "payment_intent": None, "payment_status": "unpaid", "status": "open", "url": "https://checkout.stripe.com/c/pay/cs_1",
}  # fmt: skip
REFUND: dict[str, Any] = {
    "id": "re_1Nispe2eZvKYlo2Cd31jOCgZ",
    "object": "refund",
    "amount": 1999,
    "charge": "ch_1NirD82eZvKYlo2CIvbtLWuY",
    "created": 1692942318,
    "currency": "eur",
    "metadata": {"order_id": ORDER, "refund_id": "00000000-0000-0000-0000-000000000007"},
    "payment_intent": "pi_3QhvXNB7WZ01zgkW0vvkaG12",
    "reason": None,
    "status": "succeeded",
}
INTENT: dict[str, Any] = {
    "id": "pi_3QhvXNB7WZ01zgkW0vvkaG12",
    "object": "payment_intent",
    "amount": 1999,
    "amount_received": 1999,
    "created": 1680800504,
    "currency": "eur",
    "metadata": {"order_id": ORDER},
    "status": "succeeded",
}


def a_list(*items: dict[str, Any], has_more: bool = False, url: str = "/v1/refunds") -> dict[str, Any]:
    return {"object": "list", "url": url, "has_more": has_more, "data": list(items)}


def an_error(kind: str, message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, **({} if code is None else {"code": code})}}
