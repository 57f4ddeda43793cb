"""Schemathesis over the whole of both services' OpenAPI documents: what they promise is what is answered.

Every operation is asked with generated input, right and wrong, of every phase that needs no links between operations. The
ids of real things stand in for half of the generated ones, or hardly any request would come past `not_found`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from tests.fixtures.fix_backoffice import BackofficeProcess, Staff
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

ROOT = Path(__file__).parents[2]
EXAMPLES = 12
RUN_S_MAX = 110


def run(url: str, folder: Path, *, token: str, known: Mapping[str, str]) -> None:
    """Fail with schemathesis' own report, which ends in a command that repeats each failure."""
    seed = random.randrange(2**32)
    config = folder / "schemathesis.toml"
    config.write_text(tomli_w.dumps(_config(known)))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--checks", "all"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", str(seed)),
        *("--continue-on-failure", "--no-color", "--generation-database", "none", "--warnings", "off"),
        *("--request-timeout", "10"),
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-12_000:]}\n{done.stderr[-2000:]}"


def _config(known: Mapping[str, str]) -> dict[str, Any]:
    # Right input may still be refused for the state of things; a 5xx is a failure of another check.
    for_its_state = ["2xx", "304", "401", "403", "404", "409", "410", "412", "429"]
    beyond_schemas = {"positive_data_acceptance": {"expected-statuses": [*for_its_state, "422"]}}
    return {
        "hooks": "tests.contract.hooks",
        "parameters": dict(known),
        "checks": {
            "positive_data_acceptance": {"expected-statuses": for_its_state},
            # An entity tag that is none is one that does not match.
            "negative_data_rejection": {"expected-statuses": ["4xx"]},
            "missing_required_header": {"expected-statuses": ["400", "401", "428"]},
        },
        "operations": [
            # A stream without an end.
            {"include-path": "/v1/operations/live", "enabled": False},
            # A window that ends before it starts, a SKU twice, a product that does not exist.
            {"include-path-regex": r"^/v1/sales(/\{sale_id\}(/restock|/orders)?)?$", "checks": beyond_schemas},
            # Cursors are opaque: nobody can make one up, and tests of their own try wrong ones.
            {"include-path-regex": "^/v1/[a-z-]+$", "include-method": "GET", "checks": beyond_schemas},
        ],
    }


def test_the_backoffice_keeps_its_description(staff: Staff, backoffice: BackofficeProcess, tmp_path: Path) -> None:
    product = staff.product()
    sale = staff.open_sale()
    run(
        backoffice.url,
        tmp_path,
        token=staff.token,
        known={"path.product_id": product["id"], "path.sale_id": sale["id"]},
    )


def test_the_edge_keeps_its_description(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, tmp_path: Path
) -> None:
    sale = publisher.publish(stock=1000)
    run(edge.url, tmp_path, token=buyers.token(), known={"path.sale_id": str(sale.sale_id)})
