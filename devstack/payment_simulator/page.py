"""The page on which a buyer pays: works without JavaScript and on a phone, loads nothing from another host."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from html import escape
from typing import Final
from urllib.parse import urlsplit

from devstack.payment_simulator.books import Checkout
from devstack.payment_simulator.paying import Action
from domain.currencies import MINOR_UNIT_PLACES

STYLE: Final = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 32rem; padding: 1.5rem 1rem; }
h1 { font-size: 1.3rem; }
.note { border-left: 0.25rem solid #b45309; padding-left: 0.75rem; }
table { border-collapse: collapse; width: 100%; }
td, th { overflow-wrap: anywhere; padding: 0.35rem 0; text-align: left; vertical-align: top; }
td:last-child, th:last-child { text-align: right; white-space: nowrap; }
tfoot th { border-top: 1px solid currentColor; }
form { display: grid; gap: 0.75rem; margin: 1.5rem 0; }
button { font: inherit; min-height: 3rem; border: 1px solid currentColor; border-radius: 0.4rem; }
button { background: transparent; color: inherit; cursor: pointer; }
button.pay { background: #1d4ed8; border-color: #1d4ed8; color: #fff; font-weight: 600; }
button:focus-visible, a:focus-visible, summary:focus-visible { outline: 3px solid #f59e0b; outline-offset: 2px; }
details button { width: 100%; margin-top: 0.5rem; }
"""
STYLE_HEADERS: Final = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}


def headers(return_url: str = "") -> dict[str, str]:
    """Headers of a page. Its form leads back to the shop, which a browser checks at the redirect, too."""
    parts = urlsplit(return_url)
    shop = f" {parts.scheme}://{parts.netloc}" if return_url else ""
    policy = {
        "default-src": "'none'",
        "style-src": "'self'",
        "form-action": f"'self'{shop}",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def price(amount_minor: int, currency: str) -> str:
    """An amount with the decimal places of its currency: 1,999.50 EUR, 1,999 JPY, 1.999 KWD."""
    places = MINOR_UNIT_PLACES.get(currency, 2)
    return f"{Decimal(amount_minor).scaleb(-places):,.{places}f} {currency}"


def payment_page(checkout: Checkout, *, now_ms: int, note: str = "") -> str:
    """The page of an order in its present state."""
    expired = now_ms >= checkout.expires_at_ms
    if checkout.captures:
        title, text, form = "Paid", "This order is paid. You can go back to the shop.", _tests(Action.PAY_TWICE)
    elif expired:
        title, form = "Too late", _tests(Action.PAY_LATE)
        text = "The time to pay for this order is over. No money was taken."
    else:
        title, form = "Pay for your order", _buttons(checkout) + _tests(Action.PAY_TWICE, Action.PAY_LATE)
        text = "Simulated payment: no money moves."
        if checkout.declined:
            note = note or "The payment was declined. No money was taken. You can try again."
    return _document(
        title,
        f"<p>{escape(text)}</p>{_note(note)}{_table(checkout)}"
        f'<form method="post">{form}</form>'
        f'<p><a href="{escape(checkout.return_url)}">Back to the shop</a></p>',
    )


def message_page(title: str, text: str) -> str:
    """A page that says what happened."""
    return _document(title, f"<p>{escape(text)}</p>")


def _buttons(checkout: Checkout) -> str:
    amount = escape(price(checkout.amount_minor, checkout.currency))
    return (
        f'<button class="pay" name="action" value="{Action.PAY}">Pay {amount}</button>'
        f'<button name="action" value="{Action.DECLINE}">Decline</button>'
    )


_LABELS: Final = {
    Action.PAY_TWICE: "Pay twice: the second payment comes back",
    Action.PAY_LATE: "Pay late: the shop hears of it after the hold",
}


def _tests(*actions: Action) -> str:
    buttons = (f'<button name="action" value="{action}">{escape(_LABELS[action])}</button>' for action in actions)
    return f"<details><summary>For tests</summary>{''.join(buttons)}</details>"


def _note(note: str) -> str:
    return f'<p class="note" role="status">{escape(note)}</p>' if note else ""


def _table(checkout: Checkout) -> str:
    shown: Callable[[int], str] = lambda amount: escape(price(amount, checkout.currency))  # noqa: E731
    rows = "".join(
        f"<tr><td>{escape(line['sku'])} &times; {line['quantity']}</td>"
        f"<td>{shown(line['quantity'] * line['unit_price_minor'])}</td></tr>"
        for line in checkout.lines
    )
    return (
        f"<table><thead><tr><th>Item</th><th>Price</th></tr></thead><tbody>{rows}</tbody>"
        f"<tfoot><tr><th>Total</th><th>{shown(checkout.amount_minor)}</th></tr></tfoot></table>"
    )


def _document(title: str, content: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="/page.css"></head>'
        f"<body><main><h1>{escape(title)}</h1>{content}</main></body></html>"
    )
