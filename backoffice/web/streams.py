"""Answers without an end: handed over from a handler to the guard, which writes them itself, past Robyn.

Robyn 0.88 gives each stream a thread that waits for its next piece (measured: 211 threads for 200 viewers, which stay
when the viewers are gone) and notices a client that left only at the next piece. The guard lives on the handlers' own
event loop, so a stream costs a task there, is held back by its reader and ends with its connection.

    handler -> Answer(stream=...) -> `keep` -> empty answer with STREAM_HEADER -> Robyn -> guard -> `take` -> pieces
"""

from __future__ import annotations

import asyncio
import secrets

from backoffice.web.messages import Stream

STREAM_HEADER = "x-flashsale-stream"
KEPT_S_MAX = 60.0  # longer than the guard waits for Robyn's answer


class Handover:
    """Streams between their handler and the guard. Those that nobody takes are closed."""

    def __init__(self, kept_s_max: float = KEPT_S_MAX) -> None:
        """Empty."""
        self._kept_s_max = kept_s_max
        self._streams: dict[str, tuple[Stream, asyncio.TimerHandle]] = {}

    def keep(self, stream: Stream) -> str:
        """The name under which the guard takes it."""
        name = secrets.token_hex(8)
        timer = asyncio.get_running_loop().call_later(self._kept_s_max, self._drop, name)
        self._streams[name] = stream, timer
        return name

    def take(self, name: str) -> Stream | None:
        """The stream, once; None for one that was dropped."""
        stream, timer = self._streams.pop(name, (None, None))
        if timer is not None:
            timer.cancel()
        return stream

    def _drop(self, name: str) -> None:
        stream = self.take(name)
        if stream is not None:
            stream.close()
