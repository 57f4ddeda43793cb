"""Runs faults one after the other. Faults with equal needs share a stage; a red result ends its stage."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack

from faults.checker import Finding
from faults.conditions import Door, Needs, NotHere
from faults.drill import Result, run_drill
from faults.scenario import Fault
from faults.stage import Stage, keep_logs, staged
from ops.stack_file import StackError


def run_faults(
    faults: Sequence[Fault], *, seed: int, seconds: float, say: Callable[[str], None], door: Door = Door.BOTH
) -> Iterator[Result]:
    """Yield the result of each fault as soon as it has ended."""
    left = list(faults)
    while left:
        key = left[0].needs.key
        group = [fault for fault in left if fault.needs.key == key]
        left = [fault for fault in left if fault.needs.key != key]
        while group:
            group = yield from _on_one_stage(group, seed=seed, seconds=seconds, say=say, door=door)


def _on_one_stage(
    group: list[Fault], *, seed: int, seconds: float, say: Callable[[str], None], door: Door
) -> Generator[Result, None, list[Fault]]:
    """Yield results until one is red. Returns the remaining faults, which need another stage."""
    with ExitStack() as stack:
        try:
            stage = _enter(stack, group[0].needs, say, door)
        except NotHere as reason:
            yield from (Result(fault.name, seed, skipped=str(reason)) for fault in group)
            return []
        except (StackError, OSError) as error:
            finding = Finding("F", f"the stack did not start: {error}")
            yield from (Result(fault.name, seed, findings=[finding]) for fault in group)
            return []
        for number, fault in enumerate(group, start=1):
            result = run_drill(fault, stage, seed=seed, say=say, seconds=seconds)
            if not result.is_green and not result.skipped:
                result.findings.append(Finding("-", f"logs are in {keep_logs(stage.folder)}"))
                yield result
                return group[number:]
            yield result
    return []


def _enter(stack: ExitStack, needs: Needs, say: Callable[[str], None], door: Door) -> Stage:
    """Start a stage, with a second try: another process may take a chosen port, or a busy machine may be too slow."""
    try:
        return stack.enter_context(staged(needs, say, door=door))
    except StackError as error:
        say(f"trying again: {error}")
    return stack.enter_context(staged(needs, say, door=door))
