"""Settings of every process: environment variables with the prefix `FLASHSALE_`, read once at start.

A secret may come by file: `FLASHSALE_X_FILE` names a file whose stripped content becomes `FLASHSALE_X`.
`docs/configuration.md` and `.env.example` are generated from this module (`python -m runtime.process.settings_docs`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, ValidationError, field_validator

from domain.topology import Topology
from runtime.process.errors import OperatorError
from runtime.tokens.outside_issuers import OutsideIssuer, check_issuers

PREFIX = "FLASHSALE_"


class Durability(StrEnum):
    """What must have happened before an order is answered 202."""

    FSYNC = "fsync"  # the write is synced to the reservation Redis's disk (appendfsync always)
    REPLICATED = "replicated"  # also on a replica; comes with the data tier, refused until then
    MEMORY = "memory"  # comparison only: lost with the Redis process


class SettingsError(OperatorError):
    """The environment does not make valid settings; the message names every problem."""


class Settings(BaseModel):
    """All settings. Cluster settings must be equal everywhere; the others may differ from process to process.

    Made by `load_settings`; a plain model, so that nothing but its arguments (no ambient environment) gets in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Cluster: compared in Redis at start, a process with another fingerprint refuses to run.
    lanes: int = Field(4, ge=1, le=100, description="Cluster: number of lanes over all sales.")
    shards: int = Field(4, ge=1, le=64, description="Cluster: number of PostgreSQL shards.")

    # Servers
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Reservation Redis (AOF, noeviction).")
    cache_url: str = Field("redis://127.0.0.1:6379/1", description="Cache Redis; may lose everything at any time.")
    queue_url: str = Field("redis://127.0.0.1:6379/0", description="Queue: redis:// (Streams); amqp:// comes later.")
    event_log_url: str = Field(
        "redis://127.0.0.1:6379/0", description="Event log: redis:// (Streams); kafka:// comes later."
    )
    catalogue_dsn: SecretStr = Field(
        SecretStr("postgresql://flashsale@127.0.0.1:5432/catalogue"), description="PostgreSQL catalogue database."
    )
    shard_dsns: tuple[SecretStr, ...] = Field(
        (), description="PostgreSQL shard databases in shard order, separated by commas."
    )

    catalogue_replica_dsn: SecretStr | None = Field(
        None, description="A streaming replica of the catalogue; without one, reads go to the primary."
    )
    shard_replica_dsns: tuple[SecretStr, ...] = Field(
        (), description="A streaming replica of each shard, in shard order, separated by commas; or none."
    )
    replica_lag_ms_max: int = Field(
        2000, ge=100, le=30_000, description="A replica that is further behind than this is not read."
    )

    # Edge
    edge_host: str = Field("127.0.0.1", description="Address the edge listens on.")
    edge_port: int = Field(8080, ge=0, le=65535, description="Port the edge listens on.")
    edge_workers: int = Field(1, ge=1, le=128, description="Edge worker processes.")
    edge_connections_max: int = Field(
        16_384, ge=128, description="Connections one edge worker holds, idle ones included."
    )
    durability: Durability = Field(Durability.FSYNC, description="fsync, replicated or memory: what a 202 promises.")
    user_rate: int = Field(10, ge=1, le=1000, description="Orders a second that one user may place.")
    user_burst: int = Field(20, ge=1, le=10_000, description="Orders that one user may place at once.")
    batch_size_max: int = Field(64, ge=1, le=64, description="Orders in one script call.")
    batches_in_flight_max: int = Field(2, ge=1, le=16, description="Script calls on the wire per worker.")
    edge_queue_length_max: int = Field(
        4096, ge=1, description="Orders waiting in a worker before it answers overloaded."
    )
    request_deadline_ms: int = Field(2000, ge=50, le=30_000, description="An order is answered within this time.")
    body_deadline_ms: int = Field(5000, ge=50, le=60_000, description="A body must have arrived within this time.")
    drain_ms: int = Field(10_000, ge=0, le=120_000, description="Time for in-flight work after SIGTERM.")
    stream_length_max: int = Field(
        2_000_000, ge=1000, description="Entries in a lane's stream before orders are refused."
    )
    redis_memory_percent_max: int = Field(80, ge=1, le=100, description="Redis memory use at which orders are refused.")
    cors_origins: tuple[str, ...] = Field((), description="Origins allowed by CORS, separated by commas.")

    # Tokens
    token_issuer: str = Field("flashsale", description="`iss` of access tokens.")
    token_keys_file: Path | None = Field(
        None,
        description='JSON {"active": kid, "keys": {kid: base64url}}: HS256 keys of buyers\' tokens (aud=edge). Followed '
        "while the process runs; `flashsale rotate-keys` replaces it.",
    )
    staff_key_file: Path | None = Field(
        None,
        description="PEM of an Ed25519 private key, or the same JSON with such as keys: of staff tokens (aud=backoffice). "
        "Backoffice only, never on an edge. Followed as the other one.",
    )
    access_token_s: int = Field(900, ge=60, le=900, description="Life of an access token in seconds.")
    outside_issuers: tuple[OutsideIssuer, ...] = Field(
        (),
        description="JSON list of other issuers whose tokens are accepted, as described in docs/outside-issuers.md: "
        "objects with `iss`, `aud` and `jwks_url`; optional `algorithms`, `roles_claim`, `buyer_roles`, `staff_roles`, "
        "`admin_roles`, `subjects`, `token_s_max`.",
    )

    # Backoffice
    backoffice_host: str = Field("127.0.0.1", description="Address the backoffice listens on.")
    backoffice_port: int = Field(8081, ge=0, le=65535, description="Port the backoffice listens on.")
    edge_public_url: str = Field(
        "http://127.0.0.1:8080",
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$",
        description="The edge as browsers reach it: scheme, host and port. The shop page orders there.",
    )
    live_viewers_max: int = Field(250, ge=1, le=800, description="Viewers of live figures in one process.")
    admin_email: str = Field("admin@flashsale.example", description="First administrator, made at first start.")
    admin_password: SecretStr | None = Field(None, description="Password of the first administrator.")
    login_verified_only: bool = Field(
        default=False, description="Whether buyers must have verified their address before they can log in."
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks (CIDR) of proxies whose X-Forwarded-For tells a client's address, separated by commas. "
        "Anybody else's is ignored.",
    )
    cache_entries_max: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Entries that each cache of a process keeps in its memory (product, user).",
    )
    cache_process_ttl_ms: int = Field(
        30_000,
        ge=1,
        le=600_000,
        description="Life of an entry in a process's memory: a lost message about a change heals within it.",
    )
    cache_ttl_s: int = Field(
        3600, ge=1, le=86_400, description="Life of an entry in the cache Redis, and up to a fifth less."
    )

    # Workers
    metrics_host: str = Field("127.0.0.1", description="Address of a worker's /metrics, /livez and /readyz.")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of /metrics, /livez and /readyz of a worker; 0: none."
    )
    relay_batch_max: int = Field(1000, ge=1, le=1000, description="Entries the relay publishes in one message.")
    writer_batch_max: int = Field(2000, ge=1, le=10_000, description="Orders a shard writer stores in one transaction.")
    queue_length_max: int = Field(10_000, ge=10, description="Messages in a queue before publishing waits.")
    dead_letters_max: int = Field(
        100_000, ge=10, description="Dead letters of a queue before consumers wait for somebody to look at them."
    )
    event_log_records_max: int = Field(
        20_000, ge=100, description="Records kept in a partition of the event log (redis://); the oldest go first."
    )
    sale_kept_s: int = Field(
        86_400,
        ge=60,
        description="Seconds after a sale's end at which it leaves Redis: users' records, definition, stock.",
    )
    lease_ms: int = Field(5000, ge=500, le=60_000, description="Life of a lease that is not renewed.")

    # Notices
    smtp_url: SecretStr = Field(
        SecretStr("smtp://127.0.0.1:1025"),
        description="Mail server, smtp://[user:password@]host[:port] or smtps://. With smtp:// the connection is encrypted "
        "where the server offers it, and must be where a password is given.",
    )
    mail_sender: str = Field(
        "Flashsale <no-reply@flashsale.example>", description="From address of mails, with or without a name."
    )
    link_url: str = Field(
        "http://127.0.0.1:8081",
        pattern="^https?://",
        description="Beginning of the links in mails: where the backoffice is.",
    )

    # Logs
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged.")

    @field_validator("shard_dsns", "shard_replica_dsns", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("outside_issuers", mode="before")
    @classmethod
    def _read_json(cls, value: Any) -> Any:
        if isinstance(value, str):
            return json.loads(value) if value.strip() else ()
        return value

    @field_validator("outside_issuers")
    @classmethod
    def _check_issuers(cls, value: tuple[OutsideIssuer, ...]) -> tuple[OutsideIssuer, ...]:
        return check_issuers(value)

    @property
    def topology(self) -> Topology:
        """The cluster settings."""
        return Topology(lanes=self.lanes, shards=self.shards)


def file_variable(name: str) -> str | None:
    """The variable that gives a setting by file, `FLASHSALE_X_FILE`; None for a setting that names a file itself."""
    return None if name.endswith("_file") else f"{PREFIX}{name.upper()}_FILE"


def overrule(environ: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """`environ` with `values`, and without the `X_FILE` that would set an `X` of theirs a second time."""
    by_file = {f"{name}_FILE" for name in values}
    return {**{name: value for name, value in environ.items() if name not in by_file}, **values}


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment (`os.environ` if none is given).

    Raises SettingsError with every problem, by variable name and without values.
    """
    source = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, Any] = {}
    known: set[str] = set()
    for name in Settings.model_fields:
        variable, by_file = PREFIX + name.upper(), file_variable(name)
        known.add(variable)
        if variable in source:
            values[name] = source[variable]
        if by_file is None:
            continue
        known.add(by_file)
        if by_file not in source:
            continue
        if variable in source:
            problems.append(f"{variable}: also set by {by_file}")
        try:
            values[name] = Path(source[by_file]).read_text(encoding="utf-8").strip()
        except OSError as error:
            problems.append(f"{by_file}: {error.strerror}")
        except UnicodeDecodeError:
            problems.append(f"{by_file}: not UTF-8 text")
    problems += [
        f"{variable}: unknown setting"
        for variable in sorted(source)
        if variable.startswith(PREFIX) and variable not in known
    ]
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [
            f"{PREFIX}{'_'.join(str(p) for p in e['loc'][:1]).upper()}: {e['msg']}"
            for e in error.errors(include_input=False)
        ]
    if problems:
        raise SettingsError("; ".join(problems))
    return settings
