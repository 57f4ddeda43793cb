"""Schemathesis over the OpenAPI documents of both services: the answers match the documents.

Every operation gets generated input, valid and invalid, in every phase that needs no links between operations. Ids of
existing objects replace half of the generated ids; otherwise nearly every answer would be `not_found`. Successes are
counted: every operation that can succeed must succeed at least once.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
import tomli_w

from runtime.tokens.keys import LoginClaims, load_staff_keys, mint_staff_token
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

ROOT = Path(__file__).parents[2]
# Each runs with a token of its own: it ends the caller's sessions, and later requests would get 401. The last one is
# here because the caller's own id appears in generated paths.
ENDS_THE_CALLER = ("post_v1_auth_logout_everywhere", "delete_v1_users_me", "post_v1_users_user_id_logout")
ENDLESS = ("get_v1_operations_live",)  # a stream that ends with its token: runs with a short one
STREAM_TOKEN_S = 25
# Seldom successful: their input cannot be generated (passwords, tokens, versions, signatures, dead letters, an account
# of the caller, a paid order, a fully valid body), the payment provider is away, or another operation has ended the
# only sale or deleted the only webhook. They have tests of their own.
SELDOM = frozenset(
    (
        *("post_v1_auth_register", "post_v1_auth_login", "post_v1_auth_refresh", "post_v1_auth_password"),
        "post_v1_auth_undo_email_change",
        *("get_v1_users_me", "patch_v1_users_me", "delete_v1_users_me"),
        *("get_v1_users_me_preferences", "patch_v1_users_me_preferences"),
        *(f"{method}_v1_users_me_push_subscriptions" for method in ("get", "post", "delete")),
        "get_v1_notice_samples_kind_language",
        *("post_v1_products", "patch_v1_products_product_id", "delete_v1_products_product_id"),
        *("post_v1_sales", "patch_v1_sales_sale_id", "post_v1_sales_sale_id_restock"),
        *("post_v1_sales_sale_id_pause", "post_v1_sales_sale_id_resume", "delete_v1_sales_sale_id"),
        *("get_v1_dead_letters_letter_id", "delete_v1_dead_letters_letter_id", "post_v1_dead_letters_letter_id_replay"),
        *("post_v1_orders_order_id_cancel", "post_v1_orders_order_id_refund"),
        *(f"post_v1_webhooks_webhook_id_{part}" for part in ("ping", "enable", "disable", "secret")),
        "get_v1_webhooks_webhook_id_deliveries",
        "post_v1_webhooks_webhook_id_deliveries_delivery_id_replay",
        *("get_v1_orders_order_id", "placeOrder", "startPayment", "receivePaymentEvent"),
    )
)
OWN_DOCUMENT = frozenset(("get_openapi_json", "getOpenApi"))  # the input of schemathesis
EXAMPLES = 12
RUN_S_MAX = 280  # alone it takes 12 s
pytestmark = pytest.mark.timeout(300)


def run(
    url: str, folder: Path, *, token: str, known: Mapping[str, str], sku: str = "", only: str | None = None
) -> None:
    """Fail with the report of schemathesis, which has a command to repeat each failure.

    `only`: the id of one operation; `sku` replaces generated SKUs.
    """
    seed = random.randrange(2**32)
    document = httpx.get(f"{url}/openapi.json").json()
    config = folder / "schemathesis.toml"
    config.write_text(tomli_w.dumps(_config(known, without=() if only else (*ENDS_THE_CALLER, *ENDLESS))))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--checks", "all"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", str(seed)),
        *("--continue-on-failure", "--no-color", "--generation-database", "none", "--warnings", "off"),
        *("--request-timeout", "10", "--report-har-path", str(folder / "asked.har")),
        *(("--include-operation-id", only) if only else ()),
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT), "KNOWN_SKU": sku},
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-12_000:]}\n{done.stderr[-2000:]}"
    # A wrong filter would leave out operations silently.
    asked, described = map(int, re.findall(r"(\d+) selected / (\d+) total", done.stdout)[0])
    ids = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    left_out = ids & {*ENDS_THE_CALLER, *ENDLESS}
    # Schemathesis does not request its own input document.
    assert (asked, described) == (1 if only else len(ids - left_out) - 1, len(ids) - 1), done.stdout[:2000]
    succeeded = _succeeded(document, json.loads((folder / "asked.har").read_text()))
    expected = ({only} if only else ids - left_out) - SELDOM - OWN_DOCUMENT
    assert expected - set(succeeded) == set(), f"seed {seed}: only refused; successes: {succeeded}"


def _succeeded(document: Mapping[str, Any], har: Mapping[str, Any]) -> Counter[str]:
    """The number of 2xx answers by operation id."""
    # Fixed segments win over parameters, as in the services.
    paths = sorted(document["paths"], key=lambda path: path.count("{"))
    patterns = [(re.compile(re.sub(r"\\{[a-z_]+\\}", "[^/]+", re.escape(path))), path) for path in paths]
    found: Counter[str] = Counter()
    for entry in har["log"]["entries"]:
        asked = urlsplit(entry["request"]["url"]).path
        path = next((path for pattern, path in patterns if pattern.fullmatch(asked)), None)
        operation = document["paths"].get(path, {}).get(entry["request"]["method"].lower())
        if operation is not None and 200 <= entry["response"]["status"] < 300:
            found[operation["operationId"]] += 1
    return found


def _config(known: Mapping[str, str], *, without: Iterable[str]) -> dict[str, Any]:
    # Valid input may still be refused because of state; another check catches 5xx.
    for_its_state = ["2xx", "304", "401", "403", "404", "409", "410", "412", "429"]
    beyond_schemas = {"positive_data_acceptance": {"expected-statuses": [*for_its_state, "422"]}}
    return {
        "hooks": "tests.contract.hooks",
        "parameters": dict(known),
        "checks": {
            "positive_data_acceptance": {"expected-statuses": for_its_state},
            # A malformed entity tag counts as one that does not match.
            "negative_data_rejection": {"expected-statuses": ["4xx"]},
            "missing_required_header": {"expected-statuses": ["400", "401", "428"]},
        },
        "operations": [
            *({"include-operation-id": name, "enabled": False} for name in without),
            # Rules beyond the schemas: start before end, distinct SKUs, existing products, public https addresses.
            {
                "include-path-regex": r"^/v1/(sales(/\{sale_id\}(/restock|/orders)?)?|analytics/sales/\{sale_id\}|webhooks)$",
                "checks": beyond_schemas,
            },
            # Passwords that are easy to guess.
            {"include-operation-id": "post_v1_auth_register", "checks": beyond_schemas},
            # Cursors are opaque, so valid ones cannot be generated; other tests send invalid ones.
            {
                "include-operation-id-regex": "^(get_v1_[a-z]+|get_v1_dead_letters|get_v1_webhooks_.+_deliveries|listOrders)$",
                "checks": beyond_schemas,
            },
        ],
    }


def staff_token(backoffice: BackofficeProcess, *, ttl_s: int = 900) -> str:
    """A token of an administrator without an account, used by one test only."""
    key = load_staff_keys(backoffice.staff_key_file).signing
    login = LoginClaims(generation=0, auth_time_s=int(time.time()))
    return mint_staff_token(key, user_id=uuid4(), role="admin", issuer="flashsale", ttl_s=ttl_s, login=login)


def test_the_backoffice_keeps_its_description(staff: Staff, backoffice: BackofficeProcess, tmp_path: Path) -> None:
    product = staff.product()
    sale = staff.open_sale()
    token = staff_token(backoffice)
    run(
        backoffice.url,
        tmp_path,
        token=token,
        known={"path.product_id": product["id"], "path.sale_id": sale["id"]},
        sku=sale["items"][0]["sku"],
    )
    answer = httpx.get(f"{backoffice.url}/v1/sales", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text


def test_the_live_stream_keeps_its_description(backoffice: BackofficeProcess, tmp_path: Path) -> None:
    (operation,) = ENDLESS
    run(backoffice.url, tmp_path, token=staff_token(backoffice, ttl_s=STREAM_TOKEN_S), known={}, only=operation)


@pytest.mark.parametrize("operation", ENDS_THE_CALLER)
def test_what_ends_the_caller_keeps_its_description(
    operation: str, backoffice: BackofficeProcess, tmp_path: Path
) -> None:
    run(backoffice.url, tmp_path, token=staff_token(backoffice), known={}, only=operation)


def test_the_edge_keeps_its_description(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, tmp_path: Path
) -> None:
    sale = publisher.publish(stock=1000)
    token = buyers.token()
    placed = httpx.post(
        f"{edge.url}/v1/sales/{sale.sale_id}/orders",
        json={"items": [{"sku": sale.items[0].sku, "quantity": 1}]},
        headers={"Authorization": f"Bearer {token}", "Idempotency-Key": "k"},
    )
    assert placed.status_code == 202, placed.text
    known = {"path.sale_id": str(sale.sale_id), "path.order_id": placed.json()["order_id"]}
    run(edge.url, tmp_path, token=token, known=known, sku=sale.items[0].sku)
