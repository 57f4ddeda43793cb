"""Packages import only the modules in the table, compiled sources included (import-linter sees only `.py`)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Package -> the modules of ours that it may import, itself apart. A name stands for all that is below it.
MAY_IMPORT = {
    "domain": set(),
    "hotpath": set(),
    "runtime": {"domain"},
    "migrations": {"domain", "runtime"},
    "reservation": {"domain", "runtime"},
    "payments": {"domain", "runtime", "reservation"},
    "notices": {"domain"},
    "edge": {"domain", "runtime", "reservation", "payments", "hotpath"},
    "backoffice": {"domain", "runtime", "reservation", "payments", "notices"},
    "workers": {"domain", "runtime", "reservation", "payments", "notices"},
    "ops": {"domain", "runtime", "reservation", "payments", "migrations"},
    "devstack": {"domain", "runtime", "reservation", "payments", "migrations", "ops"},
    "faults": {"domain", "runtime", "reservation", "payments", "migrations", "ops", "devstack"},
}
OURS = {*MAY_IMPORT, "tests", "perf"}
_CIMPORT = re.compile(r"^\s*(?:from\s+(?P<source>[\w.]+)\s+cimport\b|cimport\s+(?P<modules>[\w., ]+))")
_CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+(?P<source>[\w.]+)\s+import\b|import\s+(?P<modules>[\w., ]+))")
# The standard library without I/O, for `domain`.
PURE_MODULES = {
    "__future__", "base64", "binascii", "collections", "dataclasses", "enum", "functools", "hashlib", "hmac",
    "itertools", "json", "math", "re", "secrets", "string", "struct", "time", "typing", "uuid", "datetime",
    "decimal", "zlib",
}  # fmt: skip


def _python_imports(path: Path) -> Iterator[str]:
    """Absolute names of the imports of a module, including those in functions and under TYPE_CHECKING."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            # The last name may be a module, as in `from reservation import scripts`, or a function.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _cython_names(path: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := pattern.match(line):
            names = match["source"] or match["modules"]
            yield from (name.split(" as ")[0].strip() for name in names.split(","))


def _is_below(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_package_imports_only_what_it_may(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py*")):
        if path.suffix in (".py", ".pyi"):
            names = _python_imports(path)
        elif path.suffix in (".pyx", ".pxd"):
            names = _cython_names(path, _CYTHON_IMPORT)
        else:
            continue
        wrong += [
            f"{path.relative_to(ROOT)}: {name}"
            for name in names
            if name.split(".")[0] in OURS and not any(_is_below(name, module) for module in allowed)
        ]
    assert not wrong


def test_domain_is_pure() -> None:
    for path in sorted((ROOT / "domain").rglob("*.py")):
        used = {name.split(".")[0] for name in _python_imports(path)} - {"domain"}
        assert used <= PURE_MODULES, path
        assert used <= sys.stdlib_module_names


def test_compiled_code_is_leaf_code() -> None:
    """Every `cimport` is of the package's own modules, the C library, or the C API of Python."""
    sources = sorted((*ROOT.glob("hotpath/**/*.pyx"), *ROOT.glob("hotpath/**/*.pxd")))
    assert sources
    for path in sources:
        for name in _cython_names(path, _CIMPORT):
            assert name.split(".")[0] in {"", "hotpath", "libc", "posix", "cpython", "cython"}, (
                f"{path.name}: cimport {name}"
            )


def test_compiled_modules_have_their_surface_and_their_extension() -> None:
    """One Extension per `.pyx` and a `.pyi` beside it: never a silent pure-Python twin."""
    table = (ROOT / "setup.py").read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("hotpath/**/*.pyx")):
        assert path.with_suffix(".pyi").exists(), f"{path.name} has no .pyi"
        assert not path.with_suffix(".py").exists(), f"{path.name} has a twin"
        assert f'"{".".join(path.relative_to(ROOT).with_suffix("").parts)}"' in table, f"{path.name} is not built"


def test_no_package_for_odds_and_ends() -> None:
    """Such a name describes nothing, so unrelated code gathers under it."""
    for package in (".", *MAY_IMPORT):
        for name in ("common", "utils", "util", "helpers", "misc", "shared"):
            assert not (ROOT / package / name / "__init__.py").exists(), f"{package}/{name}"
            assert not (ROOT / package / f"{name}.py").exists(), f"{package}/{name}.py"


def test_every_top_level_package_is_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= OURS
