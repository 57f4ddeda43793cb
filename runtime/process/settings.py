"""Settings of every process: environment variables with the prefix `FLASHSALE_`, read once at start.

A secret may come from a file: `FLASHSALE_X_FILE` names a file; its stripped content becomes `FLASHSALE_X`.
`docs/configuration.md` and `.env.example` are generated from this module (`python -m runtime.process.settings_docs`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)

from domain.topology import BucketMap, Topology
from domain.webhooks import RETRY_DELAYS_S
from runtime.process.errors import OperatorError
from runtime.redis.addresses import ClusterAddress, is_cluster
from runtime.tokens.outside_issuers import OutsideIssuer, check_issuers

PREFIX = "FLASHSALE_"
_REDIS_URL = "^(redis|rediss|unix)://"
_RESERVATION_URL = "^(redis|rediss|unix|redis\\+cluster|rediss\\+cluster)://"


class Durability(StrEnum):
    """The guarantee that an order has when it is answered 202."""

    FSYNC = "fsync"  # the write is synced to the reservation Redis's disk (appendfsync always)
    REPLICATED = "replicated"  # synced there, and also in the memory of a replica (WAIT)
    MEMORY = "memory"  # for comparisons only: lost when the Redis process ends


class KafkaMechanism(StrEnum):
    """SASL mechanisms of Kafka. PLAIN sends the password as it is: with TLS only."""

    SCRAM_SHA_512 = "SCRAM-SHA-512"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    PLAIN = "PLAIN"


class SettingsError(OperatorError):
    """The environment does not contain valid settings; the message names every problem."""


class Settings(BaseModel):
    """All settings. Cluster settings must be equal everywhere; other settings may differ between processes.

    `load_settings` creates it. A plain model: it reads nothing but its arguments, not the environment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    _buckets: BucketMap = PrivateAttr(default_factory=BucketMap)  # one for all topologies of the process

    # Cluster: compared in Redis at start; a process with another fingerprint refuses to run.
    lanes: int = Field(4, ge=1, le=100, description="Cluster: number of lanes for all sales.")
    shards: int = Field(4, ge=1, le=64, description="Number of PostgreSQL shards, those added later included.")
    first_shards: int = Field(
        0, ge=0, le=64, description="Cluster: number of shards that the installation began with; 0: all (`shards`)."
    )

    # Servers
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern=_RESERVATION_URL,
        description="Reservation Redis (AOF, noeviction): redis://host:port/database, or a Redis Cluster by some of its "
        "nodes: redis+cluster://[user:password@]host:port[,host:port].",
    )
    cache_url: str = Field(
        "redis://127.0.0.1:6379/1", pattern=_REDIS_URL, description="Cache Redis; may lose all data at any time."
    )
    queue_url: str = Field("redis://127.0.0.1:6379/0", description="Queue: redis:// (Streams), amqp:// (RabbitMQ).")
    event_log_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern="^(redis|rediss|unix|kafka)://",
        description="Event log: redis:// (Streams) or kafka://host:port[,host:port].",
    )
    catalogue_dsn: SecretStr = Field(
        SecretStr("postgresql://flashsale@127.0.0.1:5432/catalogue"), description="PostgreSQL catalogue database."
    )
    shard_dsns: tuple[SecretStr, ...] = Field(
        (), description="PostgreSQL shard databases in shard order, separated by commas."
    )
    catalogue_direct_dsn: SecretStr | None = Field(
        None,
        description="The catalogue's address without a pooler, where FLASHSALE_CATALOGUE_DSN is that of a PgBouncer: for "
        "migrations and locks that need a session. Without it, FLASHSALE_CATALOGUE_DSN is used.",
    )
    shard_direct_dsns: tuple[SecretStr, ...] = Field(
        (),
        description="The shards' addresses without a pooler, in shard order, separated by commas; without them, "
        "FLASHSALE_SHARD_DSNS are used.",
    )
    catalogue_replica_dsn: SecretStr | None = Field(
        None, description="Streaming replica of the catalogue. Without it, reads go to the primary."
    )
    shard_replica_dsns: tuple[SecretStr, ...] = Field(
        (), description="A streaming replica for each shard, in shard order, separated by commas; or none."
    )
    analytics_dsn: SecretStr | None = Field(
        None,
        description="PostgreSQL database of the figures of sales, with its own address: a direct one, not a pooler's. "
        "Without it there are no figures, and the analytics worker does not start.",
    )

    replica_lag_ms_max: int = Field(
        2000, ge=100, le=30_000, description="A replica that lags by more than this is not read."
    )

    # Edge
    edge_host: str = Field("127.0.0.1", description="Address the edge listens on.")
    edge_port: int = Field(8080, ge=0, le=65535, description="Port the edge listens on.")
    edge_direct_port: int = Field(0, ge=0, le=65535, description="Port of the edge's direct door; 0: no direct door.")
    edge_workers: int = Field(1, ge=1, le=128, description="Edge worker processes.")
    edge_connections_max: int = Field(
        16_384, ge=128, description="Open connections of one edge worker, idle ones included."
    )
    edge_address_connections_max: int = Field(
        1024,
        ge=16,
        description="Open connections of one client (IPv4 address, IPv6 network of 64 bits) to one edge worker; above, its "
        "idle ones are closed, the longest idle first. Clients in FLASHSALE_TRUSTED_PROXIES are exempt.",
    )
    durability: Durability = Field(Durability.FSYNC, description="Guarantee of a 202: fsync, replicated or memory.")
    user_rate: int = Field(10, ge=1, le=1000, description="Orders per second that one user may place.")
    user_burst: int = Field(20, ge=1, le=10_000, description="Orders that one user may place at once.")
    user_read_rate: int = Field(
        50, ge=1, le=1000, description="Reads and cancellations per second of one user at one edge worker."
    )
    user_read_burst: int = Field(
        200, ge=1, le=10_000, description="Reads and cancellations of one user at one edge worker at once."
    )
    batch_size_max: int = Field(64, ge=1, le=64, description="Orders in one script call.")
    batches_in_flight_max: int = Field(2, ge=1, le=16, description="Script calls that a worker has in flight.")
    edge_queue_length_max: int = Field(
        4096,
        ge=1,
        description="Waiting orders at which a worker answers `overloaded`. Orders for SKUs last seen sold out are "
        "counted apart, with the same limit.",
    )
    request_deadline_ms: int = Field(2000, ge=50, le=30_000, description="An order is answered within this time.")
    body_deadline_ms: int = Field(5000, ge=50, le=60_000, description="A body must arrive within this time.")
    drain_ms: int = Field(10_000, ge=0, le=120_000, description="Time for work in flight after SIGTERM.")
    stream_length_max: int = Field(
        2_000_000, ge=1000, description="Entries in a lane's stream at which orders are refused."
    )
    redis_memory_percent_max: int = Field(80, ge=1, le=100, description="Redis memory use at which orders are refused.")
    cors_origins: tuple[str, ...] = Field((), description="Origins allowed by CORS, separated by commas.")

    # Tokens
    token_issuer: str = Field("flashsale", description="`iss` of access tokens.")
    token_keys_file: Path | None = Field(
        None,
        description='JSON {"active": kid, "keys": {kid: base64url}}: HS256 keys of buyers\' tokens (aud=edge). A running '
        "process follows changes of the file; `flashsale rotate-keys` replaces it.",
    )
    staff_key_file: Path | None = Field(
        None,
        description="Keys of staff tokens (aud=backoffice): PEM of an Ed25519 private key, or a JSON key ring of such keys. "
        "Backoffice only, never on an edge. A running process follows changes of the file.",
    )
    access_token_s: int = Field(900, ge=60, le=900, description="Lifetime of an access token in seconds.")
    outside_issuers: tuple[OutsideIssuer, ...] = Field(
        (),
        description="JSON list of outside issuers; their tokens are accepted as docs/outside-issuers.md describes: "
        "objects with `iss`, `aud` and `jwks_url`; optional `algorithms`, `roles_claim`, `buyer_roles`, `staff_roles`, "
        "`admin_roles`, `subjects`, `token_s_max`.",
    )

    # Backoffice
    backoffice_host: str = Field("127.0.0.1", description="Address the backoffice listens on.")
    backoffice_port: int = Field(8081, ge=0, le=65535, description="Port the backoffice listens on.")
    edge_public_url: str = Field(
        "http://127.0.0.1:8080",
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$",
        description="Public address of the edge: scheme, host and port. The shop page sends orders there.",
    )
    live_viewers_max: int = Field(250, ge=1, le=800, description="Viewers of live figures per process.")
    admin_email: str = Field("admin@flashsale.example", description="Address of the first administrator.")
    admin_password: SecretStr | None = Field(
        None,
        description="Password of the first administrator, who is created while no administrator exists. The backoffice "
        "ends if it is easy to guess, or if another account has the address.",
    )
    login_verified_only: bool = Field(
        default=False, description="Whether buyers must verify their address before they can log in."
    )
    recent_login_s: int = Field(
        600,
        ge=60,
        le=86_400,
        description="Age of a login in seconds up to which it counts as the proof of the password that a change of address "
        "or role and an erasure need.",
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks (CIDR) of trusted proxies, separated by commas. X-Forwarded-For names the client's address "
        "only if it comes from one of them.",
    )
    cache_entries_max: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Entries that each cache of a process (product, user) keeps in memory.",
    )
    cache_process_ttl_ms: int = Field(
        30_000,
        ge=1,
        le=600_000,
        description="Lifetime of an entry in a process's memory; bounds how long a lost change message leaves it stale.",
    )
    cache_ttl_s: int = Field(
        3600,
        ge=1,
        le=86_400,
        description="Lifetime of an entry in the cache Redis; a random part of up to a fifth is taken off.",
    )
    audit_retention_days: int = Field(
        400, ge=30, le=3650, description="Days after which entries of the audit log are deleted."
    )

    # Workers
    metrics_host: str = Field("127.0.0.1", description="Address of a worker's /metrics, /livez and /readyz.")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of a worker's /metrics, /livez and /readyz; 0: none."
    )
    relay_batch_max: int = Field(1000, ge=1, le=1000, description="Entries that the relay publishes in one message.")
    writer_batch_max: int = Field(
        2000, ge=1, le=10_000, description="Orders that a shard writer stores in one transaction."
    )
    queue_length_max: int = Field(10_000, ge=10, description="Messages in a queue at which publishers wait.")
    dead_letters_max: int = Field(
        100_000,
        ge=10,
        description="Dead letters of a queue at which its consumers stop until an operator removes some.",
    )
    event_log_records_max: int = Field(
        20_000,
        ge=100,
        description="Records kept in a partition of the event log (redis://); the oldest are removed first.",
    )
    kafka_tls: bool = Field(
        default=False, description="Encrypt connections to Kafka, and check the broker's certificate."
    )
    kafka_ca_file: Path | None = Field(
        None, description="PEM certificates that sign Kafka's; without it, those that this machine trusts."
    )
    kafka_certificate_file: Path | None = Field(
        None, description="PEM certificate of this client, for a Kafka that asks for one."
    )
    kafka_key_file: Path | None = Field(None, description="PEM key of FLASHSALE_KAFKA_CERTIFICATE_FILE.")
    kafka_username: str | None = Field(None, min_length=1, description="User at Kafka (SASL); without it, no login.")
    kafka_password: SecretStr | None = Field(None, min_length=1, description="Password of FLASHSALE_KAFKA_USERNAME.")
    kafka_mechanism: KafkaMechanism = Field(
        KafkaMechanism.SCRAM_SHA_512, description="SASL mechanism at Kafka; PLAIN only with FLASHSALE_KAFKA_TLS."
    )
    kafka_replication_factor: int = Field(
        1, ge=1, le=7, description="Replicas of a topic that `flashsale migrate` creates; 3 in production."
    )
    kafka_min_insync_replicas: int = Field(
        1, ge=1, le=7, description="Replicas that must store an event before it is acknowledged; 2 in production."
    )
    kafka_partition_mb_max: int = Field(
        1024, ge=1, description="MB kept in a partition of a topic at Kafka; the oldest records are removed first."
    )
    sale_kept_s: int = Field(
        86_400,
        ge=60,
        description="Seconds from a sale's end to its removal from Redis: users' records, definition, stock.",
    )
    lease_ms: int = Field(5000, ge=500, le=60_000, description="Lifetime of a lease that is not renewed.")

    # Analytics
    analytics_days: int = Field(
        35,
        ge=2,
        le=400,
        description="Days after which figures per second are deleted. Events that are older are not counted. Longer than "
        "the event log keeps records.",
    )
    analytics_minutes_days: int = Field(
        400,
        ge=2,
        le=3650,
        description="Days after which figures per minute are deleted; at least FLASHSALE_ANALYTICS_DAYS.",
    )

    # Notices
    smtp_url: SecretStr = Field(
        SecretStr("smtp://127.0.0.1:1025"),
        description="Mail server, smtp://[user:password@]host[:port] or smtps://. With smtp:// the connection is encrypted "
        "if the server offers encryption; with a password, encryption is required.",
    )
    notice_key: SecretStr | None = Field(
        None,
        min_length=24,
        description="Random text from which the secrets of mailed links are derived. Notification workers only, the same "
        "for all of them. After a change, repeated mails of notices that were under way carry new links.",
    )
    mail_sender: str = Field(
        "Flashsale <no-reply@flashsale.example>", description="Sender address of mails, with or without a name."
    )
    default_language: str = Field(
        "en",
        pattern="^[a-z]{2,3}(-[a-z0-9]{2,8})?$",
        description="Language of notices to accounts that have chosen none: a folder of notices/languages.",
    )
    announce_reserved: bool = Field(
        default=False, description="Whether buyers get a notice of each reserved order as well."
    )
    link_url: str = Field(
        "http://127.0.0.1:8081",
        pattern="^https?://",
        description="Public address of the backoffice: links in mails begin with it, and `flashsale import` sends there.",
    )

    # Web push
    vapid_key: SecretStr | None = Field(
        None,
        description="Private key of web push (RFC 8292), as `flashsale vapid-key` prints it. Notification workers only; "
        "without it they send no pushes.",
    )
    vapid_public_key: str | None = Field(
        None,
        pattern="^[A-Za-z0-9_-]{87}$",
        description="Public key that belongs to FLASHSALE_VAPID_KEY, for the backoffice, which gives it to browsers, and for "
        "the announcer; without it there is no web push.",
    )
    push_addresses_allowed: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks (CIDR) in which push services may be although they are not public, separated by commas; such "
        "services may also be reached with http://. For tests.",
    )

    # Webhooks
    webhook_key: SecretStr | None = Field(
        None,
        min_length=24,
        description="Random text from which the secrets of outgoing webhooks are derived. Backoffice and webhook worker only, "
        "the same for both; without it there are no outgoing webhooks. After a change, every receiver needs its new secret.",
    )
    webhook_addresses_allowed: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks (CIDR) in which receivers of webhooks may be although they are not public, separated by commas. "
        "With a network, http:// and any port are allowed, too.",
    )
    webhook_retry_delays_s: tuple[float, ...] = Field(
        RETRY_DELAYS_S,
        max_length=20,
        description="Delays in seconds before each further attempt of a delivery, separated by commas.",
    )
    webhook_timeout_s: float = Field(10.0, ge=0.1, le=30.0, description="A receiver must answer within this time.")
    webhook_failing_s: int = Field(
        86_400,
        ge=1,
        le=30 * 86_400,
        description="A webhook is disabled when no attempt has succeeded for this time, after at least 10 failures.",
    )
    webhook_backlog_max: int = Field(
        10_000, ge=10, le=1_000_000, description="Waiting deliveries of a webhook at which further events are skipped."
    )
    webhook_log_rows_max: int = Field(
        20_000, ge=10, le=1_000_000, description="Finished deliveries that the log of a webhook keeps."
    )
    webhook_log_days: int = Field(30, ge=1, le=365, description="Days after which deliveries leave the log.")

    # Payments
    payment_provider: str = Field(
        "none",
        pattern="^(none|simulated|stripe)$",
        description="Payment provider: stripe, simulated (for tests and demonstrations only), or none.",
    )
    payment_url: str = Field(
        "",
        pattern="^(https?://.*)?$",
        description="Address of the simulated provider; for stripe only where its API is not at its usual address.",
    )
    payment_api_key: SecretStr | None = Field(
        None, description="Key for the provider's API. Needed by edges and payment workers, and by no other process."
    )
    payment_webhook_secrets: tuple[SecretStr, ...] = Field(
        (),
        max_length=4,
        description="Secrets that sign the provider's webhooks, separated by commas; several while one is replaced.",
    )
    payment_interrupted_s: int = Field(
        20,
        ge=1,
        le=3600,
        description="After this time a payment worker settles a payment again whose settling was interrupted. Longer than "
        "an edge works on an event.",
    )
    payment_unconfirmed_s: int = Field(
        60,
        ge=1,
        le=3600,
        description="After this time a payment worker settles a captured payment again whose order is not stored as paid: "
        "Redis may have lost the decision. Longer than an order takes to its shard.",
    )
    payment_lost_s: int = Field(
        900,
        ge=1,
        le=86_400,
        description="After this time the money of an order that neither Redis nor its shard has goes back. Longer than a "
        "shard is away.",
    )

    # Logs
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Lowest level that is logged.")

    @field_validator(
        "shard_dsns",
        "shard_direct_dsns",
        "shard_replica_dsns",
        "cors_origins",
        "trusted_proxies",
        "push_addresses_allowed",
        "webhook_addresses_allowed",
        "webhook_retry_delays_s",
        "payment_webhook_secrets",
        mode="before",
    )
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

    @field_validator("redis_url")
    @classmethod
    def _check_nodes(cls, value: str) -> str:
        if is_cluster(value):
            ClusterAddress.parse(value)
        return value

    @field_validator("link_url")
    @classmethod
    def _without_slash(cls, value: str) -> str:
        return value.rstrip("/")

    def require_all_shards(self) -> None:
        """SettingsError unless each shard has its database: a program that reads only some would judge wrongly."""
        if len(self.shard_dsns) != self.shards:
            raise SettingsError(
                f"{PREFIX}SHARD_DSNS: has {len(self.shard_dsns)} entries, {PREFIX}SHARDS is {self.shards}"
            )

        if len(self.shard_direct_dsns) not in (0, self.shards):
            raise SettingsError(
                f"{PREFIX}SHARD_DIRECT_DSNS: has {len(self.shard_direct_dsns)} entries, {PREFIX}SHARDS is {self.shards}"
            )

    @property
    def catalogue_session_dsn(self) -> SecretStr:
        """The catalogue, for callers whose locks and settings must last longer than a transaction."""
        return self.catalogue_direct_dsn or self.catalogue_dsn

    @property
    def shard_session_dsns(self) -> tuple[SecretStr, ...]:
        """The shards, for callers whose locks and settings must last longer than a transaction."""
        return self.shard_direct_dsns or self.shard_dsns

    def require(self, names: Sequence[str]) -> None:
        """SettingsError for settings of these names that are not given."""
        if missing := [f"{PREFIX}{name.upper()}" for name in names if getattr(self, name) is None]:
            raise SettingsError("; ".join(f"{variable}: is not set" for variable in missing))

    @property
    def topology(self) -> Topology:
        """The cluster settings, with the process's one map of moved buckets."""
        return Topology(self.lanes, self.shards, self.first_shards, self._buckets)


def file_variable(name: str) -> str | None:
    """`FLASHSALE_X_FILE`: the variable for a file with the value; None for a setting that names a file itself."""
    return None if name.endswith("_file") else f"{PREFIX}{name.upper()}_FILE"


def overrule(environ: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """`environ` with `values` in place of its own: an `X_FILE` for an `X` in `values` is removed, too."""
    by_file = {f"{name}_FILE" for name in values}
    return {**{name: value for name, value in environ.items() if name not in by_file}, **values}


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from `environ`, by default `os.environ`.

    Raises SettingsError that lists all problems by variable name, without values.
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
            problems.append(f"{variable}: also set by {by_file}; set only one of them")
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
