"""`python -m backoffice`: reads settings and keys, builds the application, serves."""

from __future__ import annotations

import sys

import structlog

from backoffice.application import Backoffice
from backoffice.web.admission.context import Bounds
from backoffice.web.server import serve
from runtime.process.errors import OperatorError
from runtime.process.service import settings_or_exit
from runtime.process.telemetry import configure_logging
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import TokenKeysError, load_staff_keys, load_token_keys

log = structlog.get_logger()


def main() -> None:
    """Serve until SIGTERM. Exit status 2 for unusable settings or keys, 1 for a failed start."""
    settings = settings_or_exit("backoffice")
    configure_logging("backoffice", settings.log_level)
    try:
        if settings.token_keys_file is None or settings.staff_key_file is None:
            raise TokenKeysError("FLASHSALE_TOKEN_KEYS_FILE and FLASHSALE_STAFF_KEY_FILE are required")
        application = Backoffice(
            settings,
            buyer_keys=KeyWatch(settings.token_keys_file, load_token_keys),
            staff_keys=KeyWatch(settings.staff_key_file, load_staff_keys),
        )
    except (OperatorError, ValueError) as error:
        log.error("fatal", error=str(error))
        sys.exit(2)
    serve(
        application,
        host=settings.backoffice_host,
        port=settings.backoffice_port,
        drain_s_max=settings.drain_ms / 1000,
        bounds=Bounds(),
        trusted_proxies=settings.trusted_proxies,
    )


if __name__ == "__main__":
    main()
