"""Structured log lines on standard error: JSON in a pipe, plain text on a terminal.

Does not collect metrics (`prometheus_client` does). Callers log names and numbers, no settings and no secrets.
"""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO, cast

import structlog
from prometheus_client import Counter

LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}

LOG_WRITES_FAILED: Final = Counter(
    "flashsale_log_writes_failed", "Writes of log lines that failed, such as on a full disk. The lines may be lost."
)


def log_writes_failed() -> int:
    """The count, for a process that collects its metrics in another way."""
    (metric,) = LOG_WRITES_FAILED.collect()
    return int(metric.samples[0].value)


class LossyStream:
    """A text stream that loses lines where the other one raises.

    A full disk must not end the work that logs: an error of a log line would be an error of its caller.
    """

    def __init__(self, stream: TextIO) -> None:
        """`stream` stays the caller's."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write; never raises OSError."""
        try:
            return self._stream.write(text)
        except OSError:
            LOG_WRITES_FAILED.inc()
            return len(text)

    def flush(self) -> None:
        """Flush; never raises OSError."""
        try:
            self._stream.flush()
        except OSError:
            LOG_WRITES_FAILED.inc()


def configure_logging(service: str, level: str) -> None:
    """Send log lines of structlog and of the standard library to standard error, each with `service`.

    `level` is one of `LEVELS`. Call once, when the process starts.
    """
    terminal = sys.stderr.isatty()
    stream = cast(TextIO, LossyStream(sys.stderr))  # with the two methods that loggers use
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
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
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
