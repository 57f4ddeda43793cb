"""The pages and their files over HTTP: read once at start, served from memory, with strict security headers.

A page loads nothing from another host and runs only its own files: `Content-Security-Policy` (CSP level 3) admits
neither inline scripts nor markup made from text, and connections only to this service and the edge.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources

from backoffice.web.messages import Answer, Call
from backoffice.web.routing import Route
from domain.problems import Problem

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_EDGE_URL = "{{edge_url}}"
_TAG = re.compile(r'(?:W/)?("[^"]*")')
# Pages and files change together in a deployment: browsers ask for each again, and get 304 for an unchanged one.
_CACHE = "no-cache"


@dataclass(frozen=True, slots=True)
class _Page:
    """A path of a page, and the id in it: without a valid one the page is not found, and tells a browser so."""

    path: str
    parameter: str = ""
    missing: Problem = Problem.NOT_FOUND


_FILES = {
    "staff.html": (_Page("/"),),
    "shop.html": (_Page("/shop/{sale_id}", "sale_id", Problem.SALE_NOT_FOUND),),
    "my-orders.html": (
        _Page("/shop/orders"),
        _Page("/shop/orders/{order_id}", "order_id", Problem.ORDER_NOT_FOUND),
    ),
    "docs.html": (_Page("/docs"),),
    "verify-email.html": (_Page("/account/verify-email"),),
    "password-reset.html": (_Page("/account/password-reset"),),
    "undo-email-change.html": (_Page("/account/undo-email-change"),),
    "sw.js": (_Page("/shop/sw.js"),),  # a service worker controls the pages beside and below its own path
}


def routes(*, edge_url: str) -> tuple[Route, ...]:
    """A route for each page and each of their files. The buyers' pages send orders and payments to `edge_url`."""
    folder = resources.files(__package__) / "static"
    found: list[Route] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix not in _MEDIA_TYPES:
            continue
        content = entry.read_text(encoding="utf-8").replace(_EDGE_URL, html.escape(edge_url, quote=True)).encode()
        is_page = suffix == ".html"
        pages = _FILES[entry.name] if is_page else _FILES.get(entry.name, (_Page(f"/static/{entry.name}"),))
        headers = _headers(edge_url, is_shop=pages[0].path.startswith("/shop/")) if is_page else _FILE_HEADERS
        for page in pages:
            found.append(
                Route(
                    "GET",
                    page.path,
                    _serve(page, content, media_type=_MEDIA_TYPES[suffix], headers=headers),
                    f"Page {page.path}" if is_page else f"File {page.path}",
                    "pages",
                    media_type=_MEDIA_TYPES[suffix],
                    problems=(page.missing,) if page.parameter else (),
                    headers=("If-None-Match",),
                    described=is_page,
                )
            )
    return tuple(found)


_FILE_HEADERS = {"cache-control": _CACHE, "cross-origin-resource-policy": "same-origin"}


def _headers(edge_url: str, *, is_shop: bool) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": f"'self' {edge_url}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        # Pages of the shop start the service worker of web push, whose address is a trusted type.
        "trusted-types": "service-worker" if is_shop else "'none'",
    }
    return {
        **_FILE_HEADERS,
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    }


def _serve(
    page: _Page, content: bytes, *, media_type: str, headers: dict[str, str]
) -> Callable[[Call], Awaitable[Answer]]:
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    headers = {**headers, "etag": tag}

    async def serve(call: Call) -> Answer:
        if page.parameter:
            call.path_id(page.parameter, page.missing)
        wanted = call.headers.get("if-none-match", "")
        if wanted.strip() == "*" or tag in _TAG.findall(wanted):
            return Answer(304, headers=headers)
        return Answer(body=content, media_type=media_type, headers=headers)

    return serve
