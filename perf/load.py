"""The load driver as its own process, with its counts so far."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from ops.tokens import mint_many
from runtime.process.settings import load_settings
from runtime.tokens.keys import load_token_keys

ROOT = Path(__file__).parent.parent
TOKEN_S = 86_400
END_S_MAX = 60.0


class LoadFailed(Exception):
    """The load driver ended without its last line, or not all orders got the expected answer."""


def write_tokens(path: Path, keys_file: Path, *, users: int) -> None:
    """Write a file of `users` lines `user_id<TAB>token` for the driver."""
    path.touch(mode=0o600)
    keys, issuer = load_token_keys(keys_file), load_settings().token_issuer
    with path.open("w", encoding="ascii") as file:
        file.writelines(
            f"{user}\t{token}\n" for user, token in mint_many(keys, count=users, issuer=issuer, ttl_s=TOKEN_S)
        )


@dataclass(frozen=True, slots=True)
class Aim:
    """The target of orders: an edge, sales and SKUs to draw from, and the file of buyers' tokens."""

    url: str
    sales: Sequence[UUID]
    skus: Sequence[str]
    tokens: Path


@dataclass(slots=True)
class Load:
    """A run of `python -m perf.driver`. As a context manager it ends the driver when it is left, in any case.

    With a `rate` (orders a second) an open loop of `seconds`; otherwise a closed loop until `finish`, or for `seconds`.
    """

    aim: Aim
    key_prefix: str
    seconds: float
    connections: int = 64
    rate: float = 0.0
    orders: Path = Path(os.devnull)  # gets a line for each 202
    counted: dict[str, Any] = field(default_factory=lambda: {"accepted": 0, "refused": 0, "retries": 0})
    final: dict[str, Any] | None = None
    process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        argv = [
            sys.executable, "-m", "perf.driver", "--url", self.aim.url, "--tokens", str(self.aim.tokens),
            "--orders", str(self.orders),
            "--connections", str(self.connections), "--key-prefix", self.key_prefix, "--seconds-max", str(self.seconds),
            "--rate", str(self.rate),
        ]  # fmt: skip
        for sale in self.aim.sales:
            argv += ["--sale", str(sale)]
        for sku in self.aim.skus:
            argv += ["--sku", sku]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name="driver-lines", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None and self.process.stdin is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self._reader is not None
        self._reader.join()
        self.process.stdin.close()

    def finish(self, *, stop: bool = True) -> dict[str, Any]:
        """The driver's last line. With `stop` it sends no more orders; without, it finishes its schedule first."""
        assert self.process is not None and self.process.stdin is not None and self._reader is not None
        if stop:
            self.process.stdin.write("stop\n")
            self.process.stdin.flush()
        self._reader.join((0 if stop else self.seconds) + END_S_MAX)
        if self.final is None:
            raise LoadFailed("the load driver ended without its last line")
        return self.final

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            self.counted = json.loads(line)
        if self.counted.get("final"):
            self.final = self.counted


def require_all_accepted(final: dict[str, Any]) -> None:
    """Raise LoadFailed unless every order was accepted in the end, once."""
    if final["refused"] or final["unanswered"] or final["given_up"] or not final["accepted"]:
        raise LoadFailed(f"not all orders were accepted: {final['answers']}, {final['unanswered']} unanswered")
