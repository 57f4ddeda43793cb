"""The mailbox of a stack: a mail server that stores each mail as a file.

    python -m devstack.mailbox FOLDER PORT [HOST]

It listens on the loopback address; in a container, on HOST.
A mail is FOLDER/<UTC time>-<number>-<recipient>.eml and is written atomically. The newest `KEPT_MAX` mails are kept.
Does not forward mails, checks no password. Mails contain tokens, so only their owner can read the files.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

KEPT_MAX = 500
MAIL_BYTES_MAX = 1024 * 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9@.+_-]")
_NAME_LENGTH_MAX = 100


class Mailbox:
    """Handler of the mail server: stores each mail once per recipient."""

    def __init__(self, folder: Path, *, kept_max: int = KEPT_MAX) -> None:
        """Creates the folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._kept_max = kept_max
        self._kept = sorted(folder.glob("*.eml"))
        self._number = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802 - API
        """Store the mail; returns the answer to the sender."""
        content = envelope.content
        assert isinstance(content, bytes)
        try:
            for recipient in envelope.rcpt_tos:
                self._keep(recipient, content)
        except OSError as error:
            # A full disk, for example. An answer of 5xx would make the sender give the mail up.
            return f"452 4.3.1 not kept: {error.strerror}"
        return "250 kept"

    def _keep(self, recipient: str, content: bytes) -> None:
        self._number += 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = _UNSAFE.sub("_", recipient)[:_NAME_LENGTH_MAX]
        path = self._folder / f"{stamp}-{os.getpid()}.{self._number:06d}-{name}.eml"
        staging = path.with_suffix(".part")
        try:
            staging.touch(mode=0o600)
            staging.write_bytes(content)
            staging.rename(path)
        except OSError:
            staging.unlink(missing_ok=True)
            raise
        self._kept.append(path)
        while len(self._kept) > self._kept_max:
            self._kept.pop(0).unlink(missing_ok=True)


async def serve(folder: Path, port: int, host: str = "127.0.0.1") -> None:
    """Receive mails until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    mailbox = Mailbox(folder)
    server = await loop.create_server(
        lambda: SMTP(mailbox, data_size_limit=MAIL_BYTES_MAX, hostname="mailbox.localhost", ident="mailbox", loop=loop),
        host,
        port,
    )
    async with server:
        await stopping.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
