"""`python -m devstack.payment_simulator BOOKS PORT WEBHOOK_URL`: serve until SIGTERM or SIGINT. Composition root only.

The environment has the secrets: SIMULATOR_API_KEY, which the shop presents, and SIMULATOR_SECRET, which signs webhooks
and opens the control.
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


async def serve(path: Path, port: int, webhook_url: str, *, api_key: str, secret: str) -> None:
    """Serve until a signal."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    books = Books(path)
    provider = Provider(books, url=f"http://{HOST}:{port}", api_key=api_key, secret=secret, now_ms=now_ms)
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
        await web.TCPSite(runner, HOST, port, backlog=1024).start()
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


if __name__ == "__main__":
    configure_logging("payment-simulator", "INFO")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as event_loop:
        event_loop.run(
            serve(
                Path(sys.argv[1]),
                int(sys.argv[2]),
                sys.argv[3],
                api_key=os.environ["SIMULATOR_API_KEY"],
                secret=os.environ["SIMULATOR_SECRET"],
            )
        )
