"""All faults in the order of their runs. Subjects alternate, so that a killed process has time before its next turn."""

from __future__ import annotations

from itertools import chain, zip_longest

from faults import (
    analytics_faults,
    backoffice_faults,
    clock_faults,
    cluster_faults,
    disk_faults,
    edge_faults,
    hostile_faults,
    kafka_faults,
    money_faults,
    notice_faults,
    overload_faults,
    postgres_faults,
    provider_faults,
    publish_faults,
    queue_faults,
    rabbit_cluster,
    rabbit_faults,
    redis_faults,
    reshard_faults,
    transfer_faults,
    verdict_faults,
    webhook_faults,
    worker_faults,
)
from faults.scenario import Fault

_SUBJECTS = (
    redis_faults.FAULTS,
    worker_faults.RELAY,
    edge_faults.FAULTS,
    worker_faults.WRITER,
    hostile_faults.FAULTS,
    backoffice_faults.FAULTS,
    worker_faults.DISPATCHER,
    postgres_faults.FAULTS,
    worker_faults.EXPIRY,
    queue_faults.FAULTS,
    publish_faults.FAULTS,
    disk_faults.FAULTS,
    overload_faults.FAULTS,
    verdict_faults.FAULTS,
    clock_faults.FAULTS,
    money_faults.FAULTS,
    provider_faults.FAULTS,
    notice_faults.FAULTS,
    kafka_faults.FAULTS,
    rabbit_faults.FAULTS,
    webhook_faults.FAULTS,
    analytics_faults.FAULTS,
    rabbit_cluster.FAULTS,
    cluster_faults.FAULTS,
    transfer_faults.FAULTS,
    reshard_faults.FAULTS,
)
FAULTS: dict[str, Fault] = {
    fault.name: fault for fault in chain.from_iterable(zip_longest(*_SUBJECTS)) if fault is not None
}
