"""`sample-sale`, `mint-tokens`: data to try a deployment with."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Annotated

import typer

from ops.commands.options import AsJson, StateDir, print_json
from ops.shop import Shop
from ops.target import resolve
from ops.tokens import mint_many
from runtime.process.settings import Settings
from runtime.tokens.keys import TokenKeys, load_token_keys

DAY_S = 86_400
_LINES_AT_ONCE = 2000


def sample_sale(
    units: Annotated[int, typer.Option(min=1, max=1_000_000, help="Stock of the sale's one SKU.")] = 100,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Create a product and an open sale; print a command that buys one unit."""
    settings = resolve(state_dir, needs=["link_url", "edge_public_url", "admin_password", "token_keys_file"]).settings
    password = settings.admin_password
    assert password is not None
    shop = Shop.log_in(settings.link_url, email=settings.admin_email, password=password.get_secret_value())
    sku = f"SAMPLE-{secrets.token_hex(3).upper()}"
    shop.create_product(sku=sku, name="Sample", price_minor=1999)
    sale = shop.create_open_sale(name="Sample sale", stock={sku: units}, price_minor=1999)
    ((user, token),) = mint_many(_keys(settings), count=1, issuer=settings.token_issuer, ttl_s=DAY_S)
    sale_url = f"{settings.edge_public_url}/v1/sales/{sale['id']}"
    orders_url = f"{sale_url}/orders"
    shop_url = f"{settings.link_url}/shop/{sale['id']}"
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
    state_dir: StateDir = None,
) -> None:
    """Print a line `user_id<TAB>access token` for each synthetic buyer.

    Needs the keys; services need not run.
    """
    settings = resolve(state_dir, needs=["token_keys_file"], running=False).settings
    keys = _keys(settings)
    lines: list[str] = []
    try:
        for user, token in mint_many(keys, count=users, issuer=settings.token_issuer, ttl_s=ttl):
            lines.append(f"{user}\t{token}\n")
            if len(lines) == _LINES_AT_ONCE:
                sys.stdout.write("".join(lines))
                lines.clear()
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has ended. Without this the interpreter would report the pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None


def _keys(settings: Settings) -> TokenKeys:
    assert settings.token_keys_file is not None
    return load_token_keys(settings.token_keys_file)
