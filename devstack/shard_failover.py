"""`python -m devstack.shard_failover --state-dir DIR (--shard N | --catalogue) [--json]`: failover in a full stack.

Runs for `flashsale failover --shard`. The supervisor keeps a held server down; see `StateFolder.held`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from devstack.children import alive
from devstack.full import pooler_name
from devstack.pgbouncer import PgBouncer
from devstack.postgres_failover import FailoverError, fail_over
from devstack.postgres_pair import PostgresNode, PostgresPair, pair_at
from devstack.state import StateFolder
from ops.stack_file import StackError
from runtime.process.errors import OperatorError

END_S_MAX: Final = 20.0
LOOK_S: Final = 0.05


class Supervised:
    """The stack's supervisor owns the servers: it starts none that is held."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder

    def hold(self, node: PostgresNode) -> None:
        """See `postgres_failover.Control`."""
        name = node.folder.name
        self._folder.held.mkdir(mode=0o700, exist_ok=True)
        (self._folder.held / name).touch()
        deadline = time.monotonic() + END_S_MAX
        # Twice: the supervisor may have been starting it while the mark was made.
        while True:
            stack = self._folder.require_stack()
            pid = stack.processes[name]
            if not alive(pid):
                if name in stack.restarting:
                    return
            else:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            if time.monotonic() >= deadline:
                raise FailoverError(f"{name} (pid {pid}) could not be ended within {END_S_MAX:.0f} s")
            time.sleep(LOOK_S)

    def release(self, node: PostgresNode) -> None:
        """See `postgres_failover.Control`."""
        (self._folder.held / node.folder.name).unlink(missing_ok=True)


def main() -> int:
    """Exit status 1 with a message when the failover did not end."""
    options = _options()
    folder = StateFolder.at(options.state_dir)
    name = "catalogue" if options.shard is None else f"shard-{options.shard}"

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text} ...", file=sys.stderr)

    try:
        pair, pooler = _servers(folder, name)

        def repoint(primary: PostgresNode) -> None:
            pooler.server_port = primary.port
            pooler.reload()

        done = fail_over(pair, control=Supervised(folder), repoint=repoint, say=say)
    except (OperatorError, psycopg.Error) as error:
        print(f"flashsale: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(asdict(done), indent=2))
    else:
        print(
            f"{done.primary} is the primary of {name} now, {done.away_s:.1f} s after the old one was ended; {done.standby} "
            f"follows it (by {done.rejoined}), {done.took_s:.1f} s in all"
        )
    return 0


def _servers(folder: StateFolder, name: str) -> tuple[PostgresPair, PgBouncer]:
    """The pair of a running stack and its pooler. Raises StackError."""
    stack = folder.require_stack()
    pair = pair_at(folder.data, name, place=folder.place)
    if pair.first.folder.name not in stack.postgres_servers:
        raise StackError(
            f"the stack in {folder.path} has no pair of databases for {name}: only a full stack has (`--stack full`)"
        )
    for node in (pair.first, pair.second):
        node.port = _port(stack.postgres_servers[node.folder.name])
    pooler = pooler_name(name)
    return pair, PgBouncer(
        folder.data / pooler, pair.primary.port, pair.primary.password, port=_port(stack.poolers[pooler]),
        outside=folder.place(pooler),
    )  # fmt: skip


def _port(dsn: str) -> int:
    return int(str(conninfo_to_dict(dsn)["port"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m devstack.shard_failover", description=__doc__)
    parser.add_argument("--state-dir", type=Path, default=None, help="folder of the stack")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--shard", type=int, help="number of the shard")
    which.add_argument("--catalogue", action="store_true", help="the catalogue's pair")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
