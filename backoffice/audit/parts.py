"""The composition of this subject."""

from __future__ import annotations

from functools import partial

from backoffice.audit import routes
from backoffice.audit.refusals import FindUser, Refusals
from backoffice.audit.retention import Retention
from backoffice.audit.store import AuditLog
from backoffice.stores import Stores
from runtime.process.supervision import TaskSupervisor, Work


class AuditParts:
    """`recorder` takes the acts of requests from the dispatcher."""

    def __init__(self, stores: Stores, find_user: FindUser, *, retention_days: int) -> None:
        """Uses its arguments, owns nothing. `find_user` finds the account of a folded address."""
        log = AuditLog(stores)
        self.recorder = Refusals(stores.catalogue, find_user)
        self._retention = Retention(log.databases, days=retention_days)
        self.routes = routes.routes(routes.AuditRoutes(log, stores))

    def work(self, background: TaskSupervisor) -> dict[str, Work]:
        """Work that runs until cancelled, by name."""
        return {
            "audit refusals": partial(self.recorder.run, background),
            "audit retention": partial(self._retention.run, background),
        }
