"""No function or constant exists for tests alone: such a name is unused, or ahead of its need.

A name counts as used when it occurs in a source file outside its own definition, whatever it refers to there. So the
test misses some unused names, but raises no false alarm.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, package_of, place, tracked

CHECKED = sorted({package_of(path) for path in tracked() if path.suffix == ".py"} - {"tests", "."})
_SOURCES = {".py", ".pyx", ".pxd", ".toml", ".ini"}
_NAME = re.compile(r"\b[A-Za-z_]\w*\b")
# Compiled functions that only compiled code calls, each with a way for its differential test to reach it.
DOORS_FOR_TESTS = {
    "hotpath/ids.pyi": {"short_id", "uuid_text", "rfc3339_ms"},
    "hotpath/resp.pyi": {"Reply"},
    "hotpath/validation.pyi": {"parse_order", "parse_idempotency_key"},
}


def _defined(path: Path) -> dict[str, int]:
    """Public functions, constants and aliases of a module, with their lines. A decorator may register a function."""
    defined = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
            defined[node.name] = node.lineno
        elif isinstance(node, ast.Assign):
            defined |= {target.id: node.lineno for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined[node.target.id] = node.lineno
    return {name: line for name, line in defined.items() if not name.startswith("_")}


def _uses() -> dict[str, set[tuple[Path, int]]]:
    """Where each name occurs outside of tests, comments excluded. A stub and its Cython files count as one module."""
    uses: dict[str, set[tuple[Path, int]]] = defaultdict(set)
    for path in tracked():
        if path.suffix not in _SOURCES or package_of(path) == "tests":
            continue
        compiled = path.suffix in (".pyx", ".pxd")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.partition("#")[0]
            if compiled and re.match(r"\s*(?:def|cdef|cpdef|class)\b", code) and not code.startswith("    "):
                continue  # the definition of a name of the stub
            for name in _NAME.findall(code):
                uses[name].add((path, number))
    return uses


@pytest.fixture(scope="module")
def uses() -> dict[str, set[tuple[Path, int]]]:
    return _uses()


@pytest.mark.parametrize("package", CHECKED)
def test_nothing_exists_for_tests_alone(package: str, uses: dict[str, set[tuple[Path, int]]]) -> None:
    unused = [
        f"{place(path, line)}: {name}"
        for path in tracked()
        if package_of(path) == package and path.suffix in (".py", ".pyi")
        for name, line in _defined(path).items()
        if not uses[name] - {(path, line)} and name not in DOORS_FOR_TESTS.get(path.relative_to(ROOT).as_posix(), ())
    ]
    assert not unused, "\n".join(["", *unused])
