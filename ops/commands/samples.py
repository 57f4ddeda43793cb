"""`sample-sale`, `mint-tokens`: something to try the stack with."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Annotated

import typer

from devstack.state import StackError
from ops.commands.options import DEFAULT_STATE_DIR, AsJson, StateDir, folder_of, print_json
from ops.shop import Shop
from ops.tokens import mint_many
from runtime.process.settings import load_settings
from runtime.tokens.keys import load_token_keys

DAY_S = 86_400
_LINES_AT_ONCE = 2000


def sample_sale(
    units: Annotated[int, typer.Option(min=1, max=1_000_000, help="Stock of the sale's one SKU.")] = 100,
    as_json: AsJson = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Make a product and an open sale, and print where and how to buy."""
    folder = folder_of(state_dir)
    stack = folder.require_stack()
    shop = Shop.log_in(stack)
    sku = f"SAMPLE-{secrets.token_hex(3).upper()}"
    shop.create_product(sku=sku, name="Sample", price_minor=1999)
    sale = shop.create_open_sale(name="Sample sale", stock={sku: units}, price_minor=1999)
    ((user, token),) = mint_many(
        load_token_keys(folder.token_keys), count=1, issuer=load_settings().token_issuer, ttl_s=DAY_S
    )
    sale_url = f"{stack.edge_url}/v1/sales/{sale['id']}"
    orders_url = f"{sale_url}/orders"
    shop_url = f"{stack.backoffice_url}/shop/{sale['id']}"
    curl = (
        f"curl -i {orders_url} -H 'Authorization: Bearer {token}' -H 'Idempotency-Key: {secrets.token_hex(8)}' "
        f"""-H 'Content-Type: application/json' -d '{{"items": [{{"sku": "{sku}", "quantity": 1}}]}}'"""
    )
    if as_json:
        answer = {
            "sale_id": sale["id"], "sku": sku, "orders_url": orders_url, "sale_url": sale_url, "shop_url": shop_url,
            "user_id": user, "token": token, "curl": curl,
        }  # fmt: skip
        print_json(answer)
        return
    print(f"sale   {sale['id']}  ({units} x {sku})")
    print(f"see    {sale_url}")
    print(f"shop   {shop_url}")
    print(f"buy    {curl}")


def mint_tokens(
    users: Annotated[int, typer.Option(min=1, max=10_000_000, help="Number of synthetic buyers.")],
    ttl: Annotated[int, typer.Option(min=1, max=30 * DAY_S, help="Life of the tokens in seconds.")] = DAY_S,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Print a line `user_id<TAB>access token` for each synthetic buyer. Needs the stack's keys, not a running stack."""
    folder = folder_of(state_dir)
    if not folder.token_keys.exists():
        raise StackError(f"there are no keys in {folder.path} yet: start a stack once with `flashsale up --detach`")
    keys = load_token_keys(folder.token_keys)
    lines: list[str] = []
    try:
        for user, token in mint_many(keys, count=users, issuer=load_settings().token_issuer, ttl_s=ttl):
            lines.append(f"{user}\t{token}\n")
            if len(lines) == _LINES_AT_ONCE:
                sys.stdout.write("".join(lines))
                lines.clear()
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough; without this, the interpreter would complain once more while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
