"""Problems as pages: a browser that asks for a page gets one, also for what is not there. Performs no I/O.

Only outside of `/v1/`: clients of the API get `application/problem+json` whatever they accept.
"""

from __future__ import annotations

from html import escape

from backoffice.web.messages import Rendered, render_problem
from domain.problems import Problem, ProblemDetails

_PAGE = "text/html; charset=utf-8"
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ADVICE = {
    404: "Check the address, or follow the link again.",
    429: "Wait a moment, then load the page again.",
    503: "Wait a moment, then load the page again.",
}


def wants_page(method: str, path: str, accept: str) -> bool:
    """Whether the answer is for a person: a browser navigates with `Accept: text/html,...`."""
    types = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return method in ("GET", "HEAD") and not path.startswith("/v1/") and "text/html" in types


def render_refusal(details: ProblemDetails, *, as_page: bool) -> Rendered:
    """The wire form of a problem; status and headers are the same for a page."""
    rendered = render_problem(details)
    if not as_page:
        return rendered
    headers = {
        **rendered.headers,
        "content-type": _PAGE,
        "content-security-policy": _POLICY,
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
    }
    return Rendered(rendered.status, headers, _page(details).encode())


def _page(details: ProblemDetails) -> str:
    problem = details.problem
    advice = _ADVICE.get(problem.status, "Load the page again, or go back.")
    orders = '<p><a href="/shop/orders">Your orders</a></p>' if problem is Problem.ORDER_NOT_FOUND else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(problem.summary)}</title>"
        '<link rel="icon" href="/static/icon.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="/static/base.css"></head><body>'
        f'<main class="narrow"><section class="card"><h1>{escape(problem.summary)}</h1>'
        f"<p>{escape(details.detail)}</p><p>{advice}</p>{orders}</section></main></body></html>\n"
    )
