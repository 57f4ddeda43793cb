"""The rebalancer killed at each step of a transfer between two lanes, in a sale over four lanes.

The stock of one SKU is small and its holds are short: units come back all the time, and buyers in other lanes want
them. So transfers are under way during the whole drill. Afterwards the checker accounts for every unit (A), and no
transfer is unfinished.
"""

from __future__ import annotations

from faults.proxy import Harm
from faults.scenario import Act, Fault, Sale
from faults.worker_faults import killed_anywhere, killed_at
from reservation import scripts
from runtime.redis.scripts import Script

PROCESS = "expiry-0"  # runs the rebalancer
_MANY_LANES = Sale(hold_s=2, cancel=0.03, lanes=4)


def _at(step: Script, harm: Harm) -> Act:
    return killed_at(PROCESS, (step.sha.encode(),), harm)


def _fault(name: str, about: str, expected: str, act: Act) -> Fault:
    return Fault(name, about, expected, act, sale=_MANY_LANES)


_CREDITED_ONCE = "the next owner credits the units from the record of the lending lane, once"
FAULTS = [
    _fault(
        "transfer-interrupted-before-lend", "rebalancer killed with a transfer planned and no unit lent",
        "no unit has moved; the next owner plans anew", _at(scripts.LEND, Harm.BEFORE),
    ),
    _fault(
        "transfer-interrupted-after-lend", "rebalancer killed with units lent and in no lane",
        _CREDITED_ONCE, _at(scripts.LEND, Harm.AFTER),
    ),
    _fault(
        "transfer-interrupted-before-credit", "rebalancer killed with units lent, before the other lane gets them",
        _CREDITED_ONCE, _at(scripts.CREDIT, Harm.BEFORE),
    ),
    _fault(
        "transfer-interrupted-after-credit", "rebalancer killed with units credited and the transfer not cleared",
        "repeated without effect, then cleared", _at(scripts.CREDIT, Harm.AFTER),
    ),
    _fault(
        "transfer-interrupted-before-clear", "rebalancer killed before the lending lane clears the transfer",
        "repeated without effect, then cleared", _at(scripts.CLEAR, Harm.BEFORE),
    ),
    _fault(
        "transfer-interrupted-after-clear", "rebalancer killed after a transfer ended, before the answer arrives",
        "the next transfer of these lanes has the next number", _at(scripts.CLEAR, Harm.AFTER),
    ),
    _fault(
        "transfer-interrupted-anywhere", "rebalancer killed at random times", "as at the named steps",
        killed_anywhere(PROCESS),
    ),
]  # fmt: skip
