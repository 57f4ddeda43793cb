"""`python -m devstack.payment_simulator BOOKS PORT WEBHOOK_URL`: serve until SIGTERM or SIGINT. Composition root only.

The environment has the secrets: SIMULATOR_API_KEY, which the shop presents, and SIMULATOR_SECRET, which signs webhooks
and opens the control. Each may be a file instead, named by SIMULATOR_API_KEY_FILE and SIMULATOR_SECRET_FILE.
In a container SIMULATOR_HOST is the address to listen on, and SIMULATOR_URL the address of the pages for browsers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from devstack.payment_simulator.api import Provider, now_ms
from devstack.payment_simulator.books import Books
from devstack.payment_simulator.delivering import Deliverer, shop_session
from runtime.process.supervision import TaskSupervisor
from runtime.process.telemetry import configure_logging

HOST = "127.0.0.1"
KEEP_ALIVE_S = 60.0
STOP_S_MAX = 3.0


async def serve(path: Path, port: int, webhook_url: str, *, host: str, url: str, api_key: str, secret: str) -> None:
    """Serve until a signal. `url` is the public address of the pages."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    books = Books(path)
    provider = Provider(books, url=url, api_key=api_key, secret=secret, now_ms=now_ms)
    deliverer = Deliverer(
        books, url=webhook_url, secret=secret.encode(), behaviour=provider.behaviour, now_ms=now_ms
    )  # fmt: skip
    provider.deliverer = deliverer
    background = TaskSupervisor(stopping=stopping, give_up=lambda _: stopping.set())
    runner = web.AppRunner(
        provider.application(), access_log=None, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=STOP_S_MAX
    )  # fmt: skip
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        async with shop_session() as session:
            deliverer.start(background, session)
            await stopping.wait()
            await runner.cleanup()
            await background.stop()
            deliverer.store()
    finally:
        await runner.cleanup()
        books.close()
    background.raise_given_up()


def _secret(name: str) -> str:
    path = os.environ.get(f"{name}_FILE")
    return os.environ[name] if path is None else Path(path).read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    configure_logging("payment-simulator", "INFO")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as event_loop:
        event_loop.run(
            serve(
                Path(sys.argv[1]),
                int(sys.argv[2]),
                sys.argv[3],
                host=os.environ.get("SIMULATOR_HOST", HOST),
                url=os.environ.get("SIMULATOR_URL", f"http://{HOST}:{sys.argv[2]}"),
                api_key=_secret("SIMULATOR_API_KEY"),
                secret=_secret("SIMULATOR_SECRET"),
            )
        )
