"""Every fault that there is, in the order in which they are run."""

from __future__ import annotations

from devstack.faults import edge_faults, postgres_faults, queue_faults, redis_faults, worker_faults
from devstack.faults.scenario import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in [
        *redis_faults.FAULTS,
        *worker_faults.FAULTS,
        *postgres_faults.FAULTS,
        *edge_faults.FAULTS,
        *queue_faults.FAULTS,
    ]
}
