"""Streams: a handler hands its stream to admission, which writes the pieces to the client without Robyn.

Robyn 0.88 gives each stream a thread that waits for the next piece (measured: 211 threads for 200 viewers, and the
threads stay when the viewers leave). It notices that a client left only at the next piece. Admission runs on the event
loop of the handlers: a stream costs one task, a slow reader slows it down, and it ends with its connection.

    handler -> Answer(body=stream) -> keep -> empty answer with STREAM_HEADER -> Robyn -> admission -> take -> pieces
"""

from __future__ import annotations

import asyncio
import secrets

from backoffice.web.messages import Stream

STREAM_HEADER = "x-flashsale-stream"
KEPT_S_MAX = 60.0  # longer than admission waits for Robyn (`Bounds.answer_s_max`)


class Handover:
    """Streams on their way from a handler to admission. A stream that is not taken in time is closed."""

    def __init__(self, kept_s_max: float = KEPT_S_MAX) -> None:
        """Empty."""
        self._kept_s_max = kept_s_max
        self._streams: dict[str, tuple[Stream, asyncio.TimerHandle]] = {}

    def keep(self, stream: Stream) -> str:
        """Keep the stream; the name under which admission takes it."""
        name = secrets.token_hex(8)
        timer = asyncio.get_running_loop().call_later(self._kept_s_max, self._drop, name)
        self._streams[name] = stream, timer
        return name

    def take(self, name: str) -> Stream | None:
        """The stream, once; None when it was taken or dropped."""
        stream, timer = self._streams.pop(name, (None, None))
        if timer is not None:
            timer.cancel()
        return stream

    def _drop(self, name: str) -> None:
        stream = self.take(name)
        if stream is not None:
            stream.close()
