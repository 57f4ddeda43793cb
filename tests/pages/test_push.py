"""Web push in a real browser: the service worker shows pushes, and the page's module subscribes and unsubscribes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import Page

from domain.ids import new_uuid7
from tests.backoffice.test_preferences import SUBSCRIPTIONS, new_subscription
from tests.fixtures.fix_backoffice import BackofficeProcess
from tests.fixtures.fix_browser import Visit, Visitor
from tests.fixtures.fix_people import People
from tests.fixtures.fix_push import VAPID_PUBLIC_KEY

# A browser's subscription without a push service: headless Chromium has none.
FAKE = """(made) => {
  let subscribed = null;
  PushManager.prototype.getSubscription = async () => subscribed;
  PushManager.prototype.subscribe = async ({ userVisibleOnly, applicationServerKey }) => {
    if (!userVisibleOnly) throw new Error("not visible");
    window.usedKey = applicationServerKey;
    const raw = atob(applicationServerKey.replaceAll("-", "+").replaceAll("_", "/"));
    return (subscribed = {
      endpoint: made.endpoint, toJSON: () => made, unsubscribe: async () => { subscribed = null; return true; },
      options: { applicationServerKey: Uint8Array.from(raw, (each) => each.charCodeAt(0)).buffer },
    });
  };
}"""
_SESSION = """
  const { ask } = await import("/static/page.js");
  const session = { ask: (method, url, rest) => ask(method, url, { ...rest, token }) };
  const push = await import("/static/push.js");
"""


@pytest.fixture
def visitor(visit: Visit, backoffice: BackofficeProcess) -> Visitor:
    """A shop page (of a sale that does not exist), with the permission to show notifications."""
    visitor = visit(f"{backoffice.url}/shop/{new_uuid7()}", also=["http://127.0.0.1:8080"])
    visitor.context.grant_permissions(["notifications"], origin=backoffice.url)
    return visitor


def deliver(visitor: Visitor, origin: str, data: str) -> None:
    """Hand a push to the page's service worker as a push service would."""
    devtools = visitor.context.new_cdp_session(visitor.page)
    found: list[Any] = []
    devtools.on("ServiceWorker.workerRegistrationUpdated", lambda event: found.extend(event["registrations"]))
    devtools.send("ServiceWorker.enable")
    while not found:
        visitor.page.wait_for_timeout(50)
    push = {"origin": origin, "registrationId": found[0]["registrationId"], "data": data}
    devtools.send(f"ServiceWorker.deliver{'Push'}Message", push)  # the protocol's word is not ours
    devtools.detach()


def shown(page: Page) -> list[list[str]]:
    """The notifications that the browser shows."""
    found: list[list[str]] = page.evaluate(
        """async () => {
          const registration = await navigator.serviceWorker.ready;
          for (;;) {
            const all = await registration.getNotifications();
            if (all.length) return all.map((each) => [each.title, each.body, each.tag, each.lang, each.data.url]);
            await new Promise((resolve) => setTimeout(resolve, 50));
          }
        }"""
    )
    return found


def test_the_service_worker_shows_a_push(visitor: Visitor, backoffice: BackofficeProcess) -> None:
    page = visitor.page
    scope = page.evaluate("import('/static/push.js').then((push) => push.registered()).then((made) => made.scope)")
    assert scope == f"{backoffice.url}/shop/"
    url = f"{backoffice.url}/shop/orders/1"
    deliver(
        visitor, backoffice.url, f'{{"title": "Bezahlt", "body": "Danke", "url": "{url}", "tag": "t", "lang": "de"}}'
    )
    assert shown(page) == [["Bezahlt", "Danke", "t", "de", url]]


def test_a_click_opens_pages_of_this_host_only(visitor: Visitor, backoffice: BackofficeProcess) -> None:
    visitor.page.evaluate("import('/static/push.js').then((push) => push.registered())")
    (worker,) = visitor.context.service_workers
    opened = worker.evaluate(
        """async (urls) => {
          const opened = [];
          self.clients.openWindow = async (url) => opened.push(url);
          for (const url of urls) await open(url);
          return opened;
        }""",
        ["https://elsewhere.example/x", "javascript:alert(1)", "", f"{backoffice.url}/shop/orders/1"],
    )
    assert opened == [f"{backoffice.url}/shop/orders/1"]


def test_a_page_subscribes_and_unsubscribes(visitor: Visitor, people: People) -> None:
    ada = people.make()
    token = ada.http.headers["authorization"].removeprefix("Bearer ")
    made = new_subscription()
    visitor.page.evaluate(FAKE, made)
    done = visitor.page.evaluate(
        f"""async (token) => {{
          {_SESSION}
          const before = await push.isSubscribed(session);
          const done = await push.subscribe(session, await push.publicKey(session));
          await push.subscribe(session, await push.publicKey(session));
          return [push.canSubscribe(), before, done, await push.isSubscribed(session), window.usedKey];
        }}""",
        token,
    )
    assert done == [True, False, True, True, VAPID_PUBLIC_KEY]
    (item,) = ada.http.get(SUBSCRIPTIONS).json()["items"]
    assert item["endpoint"] == made["endpoint"]
    left = visitor.page.evaluate(
        f"async (token) => {{ {_SESSION} await push.unsubscribe(session); return push.isSubscribed(session); }}", token
    )
    assert left is False
    assert ada.http.get(SUBSCRIPTIONS).json() == {"items": []}


def test_the_service_worker_is_a_file_with_the_scope_of_the_shop(backoffice: BackofficeProcess) -> None:
    answer = httpx.get(f"{backoffice.url}/shop/sw.js")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert answer.headers["cache-control"] == "no-cache"
