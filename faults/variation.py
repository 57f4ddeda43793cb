"""Changes to the stack of a fault: settings, launchers, and proxies between processes and servers.

The runner writes a `Variation` into the stack's folder; the supervisor started by `python -m faults.variation
STATE_DIR EDGE_PORT BACKOFFICE_PORT` reads it. The rest of the stack is unchanged.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from devstack.kafka import Listener
from devstack.plan import EVENT_LOG_VARIABLE, EventLogKind, Plan
from devstack.program import Program
from devstack.state import StateFolder
from devstack.supervisor import supervise
from runtime.process.settings import overrule

FILE = "variation.json"


@dataclass(frozen=True, slots=True)
class Variation:
    """`routes`: process -> server (a key of `ports`) -> port of the proxy between them. `launchers`: words before a
    program's command line. `limits`: settings of all processes (lower case, without prefix)."""

    limits: Mapping[str, str] = field(default_factory=dict)
    launchers: Mapping[str, list[str]] = field(default_factory=dict)
    routes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)  # of the servers in `faults.stage.ROUTES`
    event_log: str = EventLogKind.REDIS
    kafka_doors: Mapping[str, int] = field(default_factory=dict)  # process -> port that its proxy forwards to
    redis_folder: str = ""  # data folder of Redis, if not in the stack's folder

    def write(self, folder: StateFolder) -> None:
        """Write it for the supervisor."""
        (folder.path / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: StateFolder) -> Variation:
        """Read the file of `write`."""
        document: dict[str, Any] = json.loads((folder.path / FILE).read_text(encoding="utf-8"))
        return cls(**document)


class VariedPlan(Plan):
    """The ordinary plan with the changes of the folder's variation."""

    def __init__(self, folder: StateFolder, edge_port: int, backoffice_port: int, environ: Mapping[str, str]) -> None:
        self.variation = Variation.read(folder)
        settings = {f"FLASHSALE_{name.upper()}": value for name, value in self.variation.limits.items()}
        varied = {**overrule(environ, settings), EVENT_LOG_VARIABLE: self.variation.event_log}
        super().__init__(folder, edge_port, backoffice_port, varied)
        self.redis.port = self.variation.ports["redis"]
        self.postgres.port = self.variation.ports["postgres"]
        self.mail_port = self.variation.ports["mail"]
        if self.rabbitmq is not None:
            self.rabbitmq.port = self.variation.ports["queue"]
        if self.payment_port is not None:  # the caller chose another payment provider
            self.payment_port = self.variation.ports["provider"]
        self.edge_port = self.variation.ports["edge"]
        if self.kafka is not None:
            self.kafka.port = self.variation.ports["kafka"]
            self.kafka.doors = self._kafka_doors()
        if self.variation.redis_folder:
            self.redis.folder = Path(self.variation.redis_folder)

    def _kafka_doors(self) -> list[Listener]:
        """A client goes on at the address that the broker tells: each proxy needs a listener that tells the proxy's."""
        return [
            Listener(f"DOOR{number}", port, self.variation.routes[process]["kafka"])
            for number, (process, port) in enumerate(self.variation.kafka_doors.items())
        ]

    def servers(self) -> list[Program]:
        """The servers, with launchers and the addresses of their proxies."""
        return [self._launched(self._routed(program)) for program in super().servers()]

    def processes(self) -> list[Program]:
        """The processes, with launchers and the addresses of their proxies."""
        return [self._launched(self._routed(program)) for program in super().processes()]

    def _routed(self, program: Program) -> Program:
        env, argv = dict(program.env), list(program.argv)
        for server, port in self.variation.routes.get(program.name, {}).items():
            direct = re.compile(rf"127\.0\.0\.1:{self.variation.ports[server]}(?=/|$)")
            env = {name: direct.sub(f"127.0.0.1:{port}", value) for name, value in env.items()}
            argv = [direct.sub(f"127.0.0.1:{port}", word) for word in argv]
        return replace(program, env=env, argv=argv)

    def _launched(self, program: Program) -> Program:
        return replace(program, argv=[*self.variation.launchers.get(program.name, []), *program.argv])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    state_dir, edge, backoffice = sys.argv[1:]
    sys.exit(
        supervise(
            StateFolder(Path(state_dir)), edge_port=int(edge), backoffice_port=int(backoffice), make_plan=VariedPlan
        )
    )
