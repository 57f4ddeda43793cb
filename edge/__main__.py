"""`python -m edge`: the edge's main process. Reads settings, refuses what cannot work, serves until SIGTERM, exits 0."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys

import structlog

from edge.metrics import snapshots
from edge.server import EdgeServer, PortUnavailable, claim_port
from runtime.process.settings import Durability, Settings, SettingsError, load_settings
from runtime.process.telemetry import configure_logging
from runtime.tokens.keys import TokenKeysError, load_token_keys

_log = structlog.get_logger("edge")

OPEN_FILES_BESIDE = 256  # files and connections of a worker that are no buyer's


def main() -> int:
    """Exit status: 0 after a drain, 2 for settings or surroundings that cannot work."""
    try:
        settings = load_settings()
        _check(settings)
        port = claim_port(settings.edge_host, settings.edge_port)
    except (SettingsError, TokenKeysError, PortUnavailable) as error:
        sys.stderr.write(f"edge: {error}\n")
        return 2
    configure_logging("edge", settings.log_level)
    raise_open_files(settings.edge_connections_max)
    # Inherited by workers: told to drain before they are able to, they must not die of it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with snapshots() as folder:
        EdgeServer(settings, port=port, folder=folder).serve()
    return 0


def raise_open_files(connections_max: int) -> None:
    """A soft limit of 1024 open files, as shells have it, would end accepting long before `edge_connections_max`."""
    wanted = connections_max + OPEN_FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        _log.warning("open_files_limited", connections_max=connections_max, open_files_max=soft)


def _check(settings: Settings) -> None:
    """What a worker could only fail at, said once and clearly."""
    problems = []
    if settings.durability is Durability.REPLICATED:
        problems.append("FLASHSALE_DURABILITY: replicated is not available yet, it comes with the data tier")
    if settings.token_keys_file is None:
        problems.append("FLASHSALE_TOKEN_KEYS_FILE: the edge needs the keys of buyers' tokens")
    else:
        load_token_keys(settings.token_keys_file)
    if settings.shard_dsns and len(settings.shard_dsns) != settings.shards:
        problems.append(
            f"FLASHSALE_SHARD_DSNS: {len(settings.shard_dsns)} given, FLASHSALE_SHARDS is {settings.shards}"
        )
    if problems:
        raise SettingsError("; ".join(problems))


if __name__ == "__main__":
    multiprocessing.freeze_support()
    sys.exit(main())
