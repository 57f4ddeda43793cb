"""How a Kafka cluster is reached: addresses, TLS, SASL. Opens no connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from runtime.process.errors import OperatorError
from runtime.process.settings import KafkaMechanism, Settings

PORT = 9092


class KafkaAccessError(OperatorError):
    """The address or the files of the settings do not work; the message names the setting."""


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """Encryption and login of a Kafka client. Without a user there is no login; without `tls` no encryption.

    `ca_file` holds the certificates to trust (None: those of the machine), `certificate_file` and `key_file` the
    client's own certificate, for a cluster that asks for one.
    """

    tls: bool = False
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    mechanism: KafkaMechanism = KafkaMechanism.SCRAM_SHA_512

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The access that the settings describe."""
        password = settings.kafka_password
        return cls(
            tls=settings.kafka_tls,
            ca_file=settings.kafka_ca_file,
            certificate_file=settings.kafka_certificate_file,
            key_file=settings.kafka_key_file,
            username=settings.kafka_username,
            password=None if password is None else password.get_secret_value(),
            mechanism=settings.kafka_mechanism,
        )

    def arguments(self, url: str) -> dict[str, Any]:
        """Arguments of aiokafka's clients for the brokers of `url`. Raises KafkaAccessError."""
        protocol = ("SASL_" if self.username else "") + ("SSL" if self.tls else "PLAINTEXT")
        if protocol == "SASL_PLAINTEXT" and self.mechanism is KafkaMechanism.PLAIN:
            raise KafkaAccessError("FLASHSALE_KAFKA_MECHANISM: PLAIN needs FLASHSALE_KAFKA_TLS=true")
        arguments: dict[str, Any] = {"bootstrap_servers": brokers(url), "security_protocol": protocol}
        if self.tls:
            arguments["ssl_context"] = self._context()
        if self.username:
            arguments |= {
                "sasl_mechanism": str(self.mechanism),
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password or "",
            }
        return arguments

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise KafkaAccessError(f"FLASHSALE_KAFKA_CA_FILE: {self.ca_file}: {error}") from error
        if self.certificate_file is not None:
            try:
                context.load_cert_chain(self.certificate_file, self.key_file)
            except (OSError, ssl.SSLError) as error:
                raise KafkaAccessError(
                    f"FLASHSALE_KAFKA_CERTIFICATE_FILE, FLASHSALE_KAFKA_KEY_FILE: {error}"
                ) from error
        return context


def brokers(url: str) -> list[str]:
    """`kafka://host:port,host:port` as addresses; 9092 is the default port. Raises KafkaAccessError."""
    listed = url.removeprefix("kafka://").rstrip("/")
    addresses = []
    for address in listed.split(","):
        host, colon, port = address.rpartition(":")
        if not colon:
            host, port = address, str(PORT)
        if not host or not port.isdigit() or "@" in host or "/" in host:
            raise KafkaAccessError(
                "FLASHSALE_EVENT_LOG_URL: use kafka://host:port[,host:port]; user and password have settings of their own"
            )
        addresses.append(f"{host}:{port}")
    return addresses
