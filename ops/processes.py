"""Runs a program of the project, such as the reconciler, as a child that works on the chosen deployment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from ops.target import Target


def run_module(module: str, arguments: Sequence[str], target: Target) -> int:
    """`python -m MODULE ARGUMENTS`, with our standard streams and working directory; its exit status."""
    # -P: a folder of the same name in the working directory must not be taken for our package.
    argv = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(argv, env=dict(target.environ), check=False).returncode
