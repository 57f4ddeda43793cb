"""Structured log lines on standard error: JSON in a pipe, plain text on a terminal.

Does not collect metrics (`prometheus_client` does). Callers log names and numbers, no settings and no secrets.
"""

from __future__ import annotations

import logging
import sys

import structlog

LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}


def configure_logging(service: str, level: str) -> None:
    """Send log lines of structlog and of the standard library to standard error, each with `service`.

    `level` is one of `LEVELS`. Call once, when the process starts.
    """
    terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # The console renderer formats tracebacks itself; in JSON a traceback becomes one member.
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.contextvars.bind_contextvars(service=service)
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    # At INFO the pool logs every connection that it hands out.
    logging.getLogger("psycopg.pool").setLevel(logging.WARNING)
