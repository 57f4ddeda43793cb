"""One connection to Robyn's private port. Sends whole requests, receives answers part by part."""

from __future__ import annotations

import asyncio

import h11

from backoffice.web.admission.wire import READ_BYTES


class RobynFailed(Exception):
    """Robyn closed the connection before its answer was complete."""


class RobynLink:
    """Open until `close`; carries one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, address: tuple[str, int]) -> RobynLink:
        """Connect; OSError when nothing listens."""
        return cls(*await asyncio.open_connection(*address))

    def close(self) -> None:
        """Close at once."""
        self._writer.close()

    async def send(self, request: h11.Request, body: bytes) -> None:
        """One whole request."""
        data = self._http.send(request) or b""
        if body:
            data += self._http.send(h11.Data(data=body)) or b""
        self._writer.write(data + (self._http.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()

    async def next_event(self) -> h11.Response | h11.Data | h11.EndOfMessage:
        """The next part of the answer; RobynFailed when the answer breaks off."""
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response | h11.Data | h11.EndOfMessage):
                return event
            if event is not h11.NEED_DATA and not isinstance(event, h11.InformationalResponse):
                raise RobynFailed
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(READ_BYTES))

    def reuse(self) -> bool:
        """Make ready for the next request; False when the connection cannot carry one."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True
