"""Accounts of buyers with a mailbox and a browser, and the letters and pushes that reach them. Judges nothing."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from devstack.children import free_port
from domain import ids
from domain.events import order_event_id
from domain.notices import Channel, id_of_order_notice
from domain.orders import OrderStatus
from domain.topology import Topology, bucket_of_user
from faults.proxy import FaultProxy
from faults.stage import Stage
from runtime.process import tasks

_TOLD: Final = (OrderStatus.PAID, OrderStatus.CANCELLED)  # notices of these are always sent
LOOK_S: Final = 1.0
_ACCOUNT = """
    INSERT INTO users (id, bucket, email, email_folded, name, password_hash, role)
    VALUES (%s, %s, %s, %s, 'Drill', 'none', 'buyer')
"""
_BROWSER = "INSERT INTO push_subscriptions (id, user_id, endpoint, p256dh, auth) VALUES (%s, %s, %s, %s, %s)"
_FINAL = """
    SELECT id, version FROM orders
    WHERE sale_id = %s AND user_id = ANY(%s::uuid[]) AND status = ANY(%s::smallint[])
        AND changed_at >= %s AND changed_at < %s
"""


@dataclass(frozen=True, slots=True)
class News:
    """An order that is paid or cancelled: its buyer gets one letter and one push of it."""

    order_id: UUID
    version: int

    @property
    def letter(self) -> str:
        """The beginning of the letter's Message-ID."""
        return str(id_of_order_notice(Channel.EMAIL, order_event_id(self.order_id, self.version)))

    @property
    def push(self) -> str:
        """The topic of the push."""
        return base64.urlsafe_b64encode(self.order_id.bytes).rstrip(b"=").decode("ascii")


@dataclass(slots=True)
class Mailboxes:
    """`push_proxy` is between the pushes and their service. `pushes` counts by topic the pushes that were taken."""

    stage: Stage
    push_proxy: FaultProxy
    users: Sequence[UUID]
    pushes: Counter[str] = field(default_factory=Counter)
    _letters: dict[str, str] = field(default_factory=dict)  # by file

    @property
    def mail_proxy(self) -> FaultProxy:
        """The proxy between letters and the mail server."""
        return self.stage.proxy("notifications-0", "mail")

    def letters(self) -> Counter[str]:
        """Letters in the stack's mailbox by the notices that their Message-IDs begin with.

        The mailbox keeps its newest letters only, so those of earlier looks count as well.
        """
        for path in Path(self.stage.stack.mail_folder).glob("*.eml"):
            if path.name in self._letters:
                continue
            try:
                with path.open("rb") as file:
                    letter = BytesHeaderParser().parse(file)
            except FileNotFoundError:  # the mailbox has just removed it
                continue
            self._letters[path.name] = str(letter["Message-ID"]).strip().lstrip("<").partition(".")[0]
        return Counter(self._letters.values())

    async def watch(self) -> None:
        """Look for letters before the mailbox removes them. Cancel to stop."""
        while True:
            self.letters()
            await asyncio.sleep(LOOK_S)

    async def news(self, sale_id: UUID, since: datetime, until: datetime) -> list[News]:
        """The stored orders of the accounts that became paid or cancelled in a span of time."""
        found: list[News] = []
        for dsn in self.stage.stack.shard_dsns:
            wanted = (sale_id, list(self.users), [int(status) for status in _TOLD], since, until)
            rows = cast(list[tuple[Any, ...]], await self.stage.sql(dsn, _FINAL, *wanted))
            found += [News(order_id, version) for order_id, version in rows]
        return found


@asynccontextmanager
async def opened(stage: Stage, users: Sequence[UUID], cluster: Topology) -> AsyncIterator[Mailboxes]:
    """Make an account with a subscribed browser of each user, and run their push service while the block runs."""
    port = free_port()
    with FaultProxy(port) as proxy:
        mailboxes = Mailboxes(stage, proxy, users)

        async def take(request: web.Request) -> web.Response:
            await request.read()
            mailboxes.pushes[request.headers["Topic"]] += 1
            return web.Response(status=201)

        application = web.Application()
        application.router.add_post("/push/{browser}", take)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        watch = asyncio.create_task(mailboxes.watch(), name="watch mailbox")
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            for user_id in users:
                await _register(stage, user_id, cluster, f"http://127.0.0.1:{proxy.port}/push/{user_id}")
            yield mailboxes
            if watch.done():
                watch.result()  # raises why it ended
        finally:
            await tasks.cancel(watch)
            await runner.cleanup()


async def _register(stage: Stage, user_id: UUID, cluster: Topology, endpoint: str) -> None:
    dsn = stage.stack.shard_dsns[cluster.shard_of_user(user_id)]
    address = f"drill-{user_id}@example.com"
    key = generate_private_key(SECP256R1()).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    await stage.sql(dsn, _ACCOUNT, user_id, bucket_of_user(user_id), address, address)
    await stage.sql(dsn, _BROWSER, ids.new_uuid7(), user_id, endpoint, point, secrets.token_bytes(16))
