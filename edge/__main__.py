"""`python -m edge`: the main process of the edge. Reads settings, checks them, serves until SIGTERM, exits with 0."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys

import structlog

from edge.metrics import snapshots
from edge.server import EdgeServer, PortUnavailable, claim_port
from edge.worker import Ports
from runtime.process.settings import Settings, SettingsError, load_settings
from runtime.process.telemetry import configure_logging
from runtime.tokens.keys import TokenKeysError, load_token_keys

_log = structlog.get_logger("edge")

OPEN_FILES_BESIDE = 256  # files and connections of a worker besides those of buyers


def main() -> int:
    """Exit status: 0 after a drain, 2 when the settings or the environment do not allow a start."""
    try:
        settings = load_settings()
        _check(settings)
        ports = Ports(claim_port(settings.edge_host, settings.edge_port), _direct_port(settings))
    except (SettingsError, TokenKeysError, PortUnavailable) as error:
        sys.stderr.write(f"edge: {error}\n")
        return 2
    configure_logging("edge", settings.log_level)
    raise_open_files(settings.edge_connections_max * (2 if ports.direct else 1))
    # Workers inherit this: without it, a drain signal would kill a worker that has no handler yet.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with snapshots() as folder:
        EdgeServer(settings, ports=ports, folder=folder).serve()
    return 0


def _direct_port(settings: Settings) -> int:
    return claim_port(settings.edge_host, settings.edge_direct_port) if settings.edge_direct_port else 0


def raise_open_files(connections_max: int) -> None:
    """Raise the soft limit of open files. The usual 1024 ends accepting long before `edge_connections_max`."""
    wanted = connections_max + OPEN_FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        _log.warning("open_files_limited", connections_max=connections_max, open_files_max=soft)


def _check(settings: Settings) -> None:
    """Report, in one message, settings with which every worker would fail."""
    problems = []
    if settings.token_keys_file is None:
        problems.append("FLASHSALE_TOKEN_KEYS_FILE: not set; the edge needs the keys that verify buyers' tokens")
    else:
        load_token_keys(settings.token_keys_file)
    if settings.shard_dsns and len(settings.shard_dsns) != settings.shards:
        problems.append(
            f"FLASHSALE_SHARD_DSNS: has {len(settings.shard_dsns)} entries, FLASHSALE_SHARDS is {settings.shards}"
        )
    if problems:
        raise SettingsError("; ".join(problems))


if __name__ == "__main__":
    multiprocessing.freeze_support()
    sys.exit(main())
