"""Pages and their files over HTTP: security headers, caching, forbidden content, contrast."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

import backoffice.pages
from domain.currencies import MINOR_UNIT_PLACES
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_browser import Visit

STATIC = Path(backoffice.pages.__file__).parent / "static"
SALE = "01890000-0000-7000-8000-000000000001"
PAGES = ("/", f"/shop/{SALE}", "/shop/orders", f"/shop/orders/{SALE}", "/docs")
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = sorted(
    "/shop/sw.js" if path.name == "sw.js" else f"/static/{path.name}"
    for path in STATIC.iterdir()
    if path.suffix in (".js", ".css", ".svg")
)


@pytest.mark.parametrize("path", PAGES)
def test_headers_of_pages(backoffice: BackofficeProcess, path: str) -> None:
    answer = httpx.get(backoffice.url + path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["img-src"] == "'self'"
    assert policy["connect-src"] == "'self' http://127.0.0.1:8080"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == ("service-worker" if path.startswith("/shop/") else "'none'")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "{{" not in answer.text


@pytest.mark.parametrize("path", [*PAGES, *FILES])
def test_unchanged_files_are_not_sent_again(backoffice: BackofficeProcess, path: str) -> None:
    first = httpx.get(backoffice.url + path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    assert len(first.content) < 64 * 1024
    for condition in (tag, f'"other", W/{tag}', "*"):
        again = httpx.get(backoffice.url + path, headers={"If-None-Match": condition})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert httpx.get(backoffice.url + path, headers={"If-None-Match": '"other"'}).content == first.content
    head = httpx.head(backoffice.url + path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)


def test_paths_that_are_not_pages(backoffice: BackofficeProcess) -> None:
    for path in (
        "/static/",
        "/static/staff.html",
        "/static/../routes.py",
        "/static/%2e%2e/routes.py",
        "/static/none.js",
    ):
        answer = httpx.get(backoffice.url + path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    answer = httpx.get(backoffice.url + "/shop/not-an-id")
    assert (answer.status_code, answer.json()["code"]) == (404, "sale_not_found")
    answer = httpx.get(backoffice.url + "/shop/orders/not-an-id")
    assert (answer.status_code, answer.json()["code"]) == (404, "order_not_found")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/shop/not-an-id", 404), ("/shop/orders/not-an-id", 404), ("/shop/", 404), ("/nothing/<b>here", 404)],
)
def test_a_browser_gets_a_page_for_what_is_not_there(backoffice: BackofficeProcess, path: str, status: int) -> None:
    answer = httpx.get(backoffice.url + path, headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert "<h1>" in answer.text and "<b>" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"
    head = httpx.head(backoffice.url + path, headers=BROWSER)
    assert (head.status_code, head.content, head.headers["content-type"]) == (
        status,
        b"",
        answer.headers["content-type"],
    )


def test_clients_of_the_api_get_problems_whatever_they_accept(backoffice: BackofficeProcess) -> None:
    for path in ("/v1/nothing", "/v1/orders"):
        answer = httpx.get(backoffice.url + path, headers=BROWSER)
        assert answer.headers["content-type"] == "application/problem+json", path
    assert httpx.post(backoffice.url + "/shop/x", headers=BROWSER).headers["content-type"] == "application/problem+json"


def test_currencies_have_the_places_of_the_domain() -> None:
    """Browsers know other decimal places for some currencies, and would show a hundred times the amount."""
    (table,) = re.findall(r"const PLACES = \{(.*?)\};", (STATIC / "page.js").read_text(encoding="utf-8"), re.DOTALL)
    places = {code: int(number) for code, number in re.findall(r"([A-Z]{3}): (\d)", table)}
    assert {code: places.get(code, 2) for code in MINOR_UNIT_PLACES} == MINOR_UNIT_PLACES


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_files_contain_nothing_that_the_policy_forbids(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in text
    # Only the login is shared by tabs; everything else ends with its tab.
    assert "localStorage" not in text or path.name == "session.js"
    for address in re.findall(r"""(?:src|href|url|import|from)\s*[=(]?\s*["'](\w+://[^"']*)""", text):
        raise AssertionError(f"loads {address}")
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text)
        assert "<html lang=" in text and 'name="viewport"' in text
        named = set(re.findall(r'<label for="([^"]+)"', text))
        fields = re.findall(r'<(?:input|select)\b[^>]*\bid="([^"]+)"', text)
        assert named == set(fields), "each field needs a label"


@pytest.mark.parametrize("path", PAGES)
def test_inline_scripts_do_not_run(visit: Visit, backoffice: BackofficeProcess, path: str) -> None:
    visitor = visit(backoffice.url + path, also=["http://127.0.0.1:8080"])
    ran = visitor.page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.text = "window.ran = true"; } catch (error) { return String(error); }
          document.head.append(script);
          return window.ran === true;
        }"""
    )
    assert ran is not True
    assert visitor.errors, "the browser must report the refusal"
    visitor.errors.clear()


def _luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (STATIC / "base.css").read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", blocks[scheme]))
    for ground in ("ground", "card"):
        for text in ("text", "quiet", "accent", "good", "bad", "warn"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for line in ("series-1", "series-2"):  # graphics: WCAG 2.2, 1.4.11
            assert _contrast(colours[line], colours[ground]) >= 3, (line, ground)
    assert _contrast(colours["on-accent"], colours["accent"]) >= 4.5
