"""A receiver of webhooks for drills: an HTTP server in threads that checks signatures, and misbehaves when told."""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from domain.webhooks import signature


class Server(ThreadingHTTPServer):
    """Keeps quiet about connections that a killed worker leaves."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Print no traceback."""


class Receiver:
    """`taken` counts the messages that were answered 200, by id; `forged` those with a wrong signature."""

    def __init__(self) -> None:
        """Listens on a port of the loopback address."""
        self.taken: Counter[str] = Counter()
        self.refused = 0
        self.forged = 0
        self.secret = b""
        self.status = 200
        self.slow_s = 0.0
        self.answered: Callable[[], None] = lambda: None
        self.port = 0
        self._server: Server | None = None
        self.open()

    @property
    def url(self) -> str:
        """The address to subscribe."""
        return f"http://127.0.0.1:{self.port}/hook"

    def use(self, secret: str) -> None:
        """Check signatures with this `whsec_...`."""
        self.secret = base64.b64decode(secret.removeprefix("whsec_"))

    def open(self) -> None:
        """Listen, on the same port as before."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the sender was killed meanwhile: this is no message
                    self.close_connection = True
                else:
                    receiver._take(self, body)

            def log_message(self, *_: object) -> None:
                """Write no log."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections until `open`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _take(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        message, at = handler.headers["webhook-id"], int(handler.headers["webhook-timestamp"])
        time.sleep(self.slow_s)
        status = self.status
        if self._server is None:
            handler.close_connection = True  # a connection that was kept alive: this receiver is dead
            return
        if handler.headers["webhook-signature"] != signature(message, at, body, [self.secret]):
            self.forged += 1
        elif status == 200:
            self.taken[message] += 1
        else:
            self.refused += 1
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        self.answered()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver while the block runs."""
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()
