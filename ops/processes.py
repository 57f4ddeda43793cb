"""Runs a program of the project, such as the reconciler, as a child that works on the chosen deployment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

from ops.target import Target


def run_module(module: str, arguments: Sequence[str], target: Target) -> int:
    """`python -m MODULE ARGUMENTS`, with our standard streams and working directory; its exit status.

    Its log shows progress on a terminal, and only warnings in a pipe, unless FLASHSALE_LOG_LEVEL is set.
    """
    environ = dict(target.environ)
    if not sys.stderr.isatty():
        environ.setdefault("FLASHSALE_LOG_LEVEL", "WARNING")
    return run_program(module, arguments, environ)


def run_program(module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """`python -m MODULE ARGUMENTS`, with our standard streams and working directory; its exit status."""
    # -P: a folder of the same name in the working directory must not be taken for our package.
    argv = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.run(argv, env=dict(environ), check=False).returncode
