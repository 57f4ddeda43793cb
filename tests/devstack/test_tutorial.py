"""The tutorial's commands, executed in order and in one shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from devstack.state import StateFolder
from tests.fixtures.fix_stack import ROOT, flashsale

TUTORIAL = ROOT / "docs" / "tutorial.md"
_FENCED_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The reader's commands, with the default folder and ports of the stack replaced by those of this test.
_STAND_INS = {
    "make up": "flashsale up --detach",
    "make down": "flashsale down",
    ".venv/bin/flashsale": "flashsale",
    ".venv/bin/python": "python",
}


def blocks() -> list[str]:
    """The fenced `sh` blocks of the tutorial."""
    return [match[1] for match in _FENCED_SHELL.finditer(TUTORIAL.read_text(encoding="utf-8"))]


def _script(state_dir: Path) -> str:
    prelude = f"""
set -euo pipefail
export FLASHSALE_EDGE_PORT=0 FLASHSALE_BACKOFFICE_PORT=0
python() {{ {sys.executable} "$@"; }}
flashsale() {{ command=$1; shift; {sys.executable} -m ops.cli "$command" --state-dir {state_dir} "$@"; }}
"""
    text = ""
    for number, block in enumerate(blocks(), start=1):
        text += f"\necho '=== block {number}'\n{block}"
    for word, stand_in in {**_STAND_INS, ".flashsale/": f"{state_dir}/"}.items():
        text = text.replace(word, stand_in)
    return prelude + text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (Debian package curl)")
def test_tutorial_works_from_top_to_bottom(tmp_path: Path) -> None:
    folder = StateFolder(Path(tempfile.mkdtemp(dir=tmp_path)))
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", _script(folder.path)], capture_output=True, text=True, timeout=110, cwd=ROOT, check=False,
            env={name: value for name, value in os.environ.items() if not name.startswith("FLASHSALE_")},
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    finally:
        flashsale(folder, "down", "--destroy")
    said = dict(re.findall(r"^=== block (\d+)\n((?:(?!^===).*\n?)*)", done.stdout, re.MULTILINE))
    text = "\n".join(said.values())
    assert "open" in text  # the published sale's state
    assert "purchase_limit_exceeded" in text
    assert re.search(r"^shard [0-3]: \('MUG-\d+', 2, 'reserved'\)$", text, re.MULTILINE)
    assert "cancelled\n10\n" in text  # the order's state, and the available units afterwards
    assert "paid captured\n" in text, text
    assert re.search(r"^(refund_due|refunded)\nrefunded$", text, re.MULTILINE), text  # the refund may be the faster one
