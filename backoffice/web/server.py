"""Runs Robyn behind admission: one process, one event loop, an orderly start and stop.

Robyn runs the event loop itself and never returns from it, installs signal handlers that drop connections, asks on
stdin when a port is in use, and reads `robyn.env`. This module works around each of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol
from urllib.parse import unquote_plus

import robyn
import structlog
from robyn.argument_parser import Config
from robyn.dependency_injection import DependencyMap

from backoffice.web.admission.connection import CLIENT_HEADER
from backoffice.web.admission.context import Bounds
from backoffice.web.admission.listener import Admission
from backoffice.web.clients import Network
from backoffice.web.messages import Call, Refused, render_problem
from backoffice.web.routing import Dispatcher, Route, RouteTable
from backoffice.web.streams import STREAM_HEADER, Handover
from domain.problems import Problem, ProblemDetails
from runtime.process.errors import OperatorError

_LOOPBACK = "127.0.0.1"
_PROBE_S_MAX = 10.0

log = structlog.get_logger(__name__)


class Application(Protocol):
    """The application to serve: routes, and work beside requests."""

    @property
    def routes(self) -> tuple[Route, ...]:
        """All operations, each once."""
        ...

    @property
    def dispatcher(self) -> Dispatcher:
        """Runs the handlers of the routes."""
        ...

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Held open while requests are served: pools, background tasks."""
        ...

    def drain(self) -> None:
        """The process will stop: readiness fails from now on, and streams end."""
        ...


def serve(
    application: Application,
    *,
    host: str,
    port: int,
    drain_s_max: float,
    bounds: Bounds,
    trusted_proxies: Sequence[Network] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then exit the process, with status 0 after an orderly stop. Does not return.

    Status 1 when the port is in use or the application fails to start.
    """
    table = RouteTable(application.routes)
    secret = secrets.token_urlsafe(24)
    handover = Handover()
    # This socket is bound and never listens: it reserves the port for Robyn, which shares it by SO_REUSEPORT.
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((_LOOPBACK, 0))
        upstream = (_LOOPBACK, int(reserved.getsockname()[1]))
        admission = Admission(
            robyn=upstream,
            secret=secret,
            permit=partial(application.dispatcher.permit, table),
            take_stream=handover.take,
            bounds=bounds,
            trusted_proxies=trusted_proxies,
        )
        life = _Life(application, admission, (host, port), upstream, drain_s_max)
        app = _robyn(table, application.dispatcher, secret, handover)
        app.startup_handler(life.start)
        for name in ("ROBYN_HOST", "ROBYN_PORT", "ROBYN_BROWSER_OPEN"):
            os.environ.pop(name, None)
        app.start(*upstream, _check_port=False)
    raise AssertionError("Robyn returned")


class _Life:
    """Runs the process from the start of the event loop to the exit."""

    def __init__(
        self,
        application: Application,
        admission: Admission,
        address: tuple[str, int],
        upstream: tuple[str, int],
        drain_s_max: float,
    ) -> None:
        """Starts nothing yet."""
        self._application = application
        self._admission = admission
        self._address = address
        self._upstream = upstream
        self._drain_s_max = drain_s_max
        self._stopping = asyncio.Event()
        self._listening = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The start-up handler of Robyn. An exception here would abort the process, so the work runs in a task."""
        self._catch_signals()
        self._task = asyncio.get_running_loop().create_task(self._live())

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            loop.add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        self._stopping.set()
        if not self._listening and self._task is not None:
            self._task.cancel()  # the start is still in progress

    async def _live(self) -> None:
        status = 1
        try:
            async with self._application.running():
                await self._probe()
                # Robyn has installed its own handlers by now, which would close connections at once.
                self._catch_signals()
                port = await self._admission.start(*self._address)
                self._listening = True
                log.info("listening", host=self._address[0], port=port)
                await self._stopping.wait()
                log.info("draining")
                self._application.drain()
                await self._admission.drain(self._drain_s_max)
            status = 0
        except asyncio.CancelledError:
            status = 0
        except OSError as error:
            log.error("cannot listen", host=self._address[0], port=self._address[1], reason=error.strerror)
        except OperatorError as error:
            log.error("fatal", error=str(error))
        except Exception:
            log.exception("the backoffice failed")
        finally:
            # Robyn's threads outlive the loop and its `start` never returns; all our own work has ended.
            logging.shutdown()
            os._exit(status)

    async def _probe(self) -> None:
        """Return when Robyn answers; TimeoutError after `_PROBE_S_MAX`."""
        async with asyncio.timeout(_PROBE_S_MAX):
            while True:
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection(*self._upstream)
                    try:
                        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                        if await reader.read(1):
                            return
                    finally:
                        writer.close()
                await asyncio.sleep(0.02)


def _robyn(table: RouteTable, dispatcher: Dispatcher, secret: str, handover: Handover) -> robyn.Robyn:
    for chatty in ("robyn", "actix_server", "actix_web"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = Config()
    config.disable_openapi = True  # its page loads from another host; `web.openapi` replaces it
    config.log_level = "WARN"
    config.processes = config.workers = 1
    config.open_browser = False
    app = robyn.Robyn(__file__, config=config, dependencies=DependencyMap())
    for route in table.routes:
        handler = _handler(route, dispatcher, secret, handover)
        app.add_route(route.method, route.robyn_path, handler)
        if route.method == "GET":
            app.add_route("HEAD", route.robyn_path, handler)
    return app


def _handler(route: Route, dispatcher: Dispatcher, secret: str, handover: Handover) -> Callable[..., object]:
    async def handle(request: robyn.Request) -> robyn.Response:
        try:
            call = _call(request, secret)
            rendered = await dispatcher.answer(route, call)
        except Refused as refusal:
            rendered = render_problem(refusal.details)
        except Exception:
            log.exception("request could not be converted", route=route.path)
            rendered = render_problem(ProblemDetails(Problem.INTERNAL_ERROR))
        if rendered.stream is not None:
            if request.method == "HEAD":
                rendered.stream.close()
            else:
                rendered.headers[STREAM_HEADER] = handover.keep(rendered.stream)
        return robyn.Response(rendered.status, rendered.headers, rendered.body)

    return handle


def _call(request: robyn.Request, secret: str) -> Call:
    """The request as handlers see it; Refused when admission did not forward it."""
    headers = {name: request.headers.get(name) or "" for name in request.headers.keys()}  # noqa: SIM118 - not a mapping
    forwarder, _, client = headers.pop(CLIENT_HEADER.decode("ascii"), "").partition(":")
    if not hmac.compare_digest(forwarder.encode(), secret.encode()):
        raise Refused(Problem.FORBIDDEN)  # another process of this machine connected to the private port
    body = request.body
    return Call(
        method=request.method,
        path=request.url.path,
        path_params=dict(request.path_params),
        query={unquote_plus(name): unquote_plus(values[-1]) for name, values in request.query_params.to_dict().items()},
        headers=headers,
        body=body.encode() if isinstance(body, str) else bytes(body),
        client=client,
    )
