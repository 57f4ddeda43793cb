"""The `flashsale` command. Lists what exists; each subject's commands are in `devstack.commands`."""

from __future__ import annotations

import sys

import typer

from devstack.children import Unsupported
from devstack.commands import demo, lifecycle
from devstack.servers import ServerError
from devstack.state import StackError
from faults import command as faults
from migrations.runner import MigrationError
from ops.commands import checks, dead_letters, imports, keys, rebuild, samples
from ops.shop import ShopError
from runtime.process.settings import SettingsError
from runtime.queue import QueueUnavailable
from runtime.tokens.keys import TokenKeysError

app = typer.Typer(
    name="flashsale", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Runs and checks a flash sale: limited stock, a crowd that arrives all at once, no unit sold twice.",
)  # fmt: skip
app.command()(lifecycle.up)
app.command()(lifecycle.down)
app.command()(lifecycle.status)
app.command()(demo.demo)
app.command("sample-sale")(samples.sample_sale)
app.command("mint-tokens")(samples.mint_tokens)
app.command()(checks.migrate)
app.command()(checks.reconcile)
app.command()(rebuild.rebuild)
app.command("rotate-keys")(keys.rotate_keys)
app.add_typer(dead_letters.app, name="dead-letters")
app.command()(faults.faults)
app.add_typer(imports.app, name="import")


def main() -> None:
    """Entry point. Exit status: 0 done, 1 it failed or a check did, 2 wrong usage, 3 no stack is up (`status`)."""
    try:
        app()
    except (
        MigrationError, QueueUnavailable, ServerError, SettingsError, ShopError, StackError, TokenKeysError, Unsupported,
    ) as error:  # fmt: skip
        print(f"flashsale: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
