"""`flashsale analytics rebuild` on a stack that is up."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.fixtures.fix_databases import audited
from tests.fixtures.fix_stack import COMMAND_S_MAX, ROOT, RunningStack, eventually
from tests.ops.test_events import buy


def rebuild(stack: RunningStack, *options: str) -> tuple[str, str]:
    """Standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "analytics", "rebuild", "--state-dir", str(stack.folder.path), *options],
        capture_output=True, text=True, timeout=COMMAND_S_MAX, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return done.stdout, done.stderr


def test_figures_are_counted_again_and_the_audit_log_says_so(running_stack: RunningStack) -> None:
    buy(running_stack)
    dsn = running_stack.stack.catalogue_dsn
    eventually(lambda: json.loads(rebuild(running_stack, "--dry-run", "--json")[0])["first_day"] is not None)
    assert audited(dsn, "figures:all") == []
    report, progress = rebuild(running_stack)
    assert "the new figures are served" in report
    assert "the figures of days before" in progress
    assert audited(dsn, "figures:all") == [("figures.rebuild", "begun"), ("figures.rebuild", "done")]
