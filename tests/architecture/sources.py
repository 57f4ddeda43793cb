"""The files of the repository and their prose, for the tests of this package. Reads files, changes nothing."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A string is matched first, so that a comment sign inside a string starts no comment.
_STRING = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
_CYTHON = re.compile(rf'(?P<prose>"""(?:.*?)"""|#[^\n]*)|{_STRING}', re.DOTALL)
_COMMENTS = {
    ".pyx": _CYTHON,
    ".pxd": _CYTHON,
    ".lua": re.compile(rf"(?P<prose>--\[\[.*?\]\]|--[^\n]*)|{_STRING}", re.DOTALL),
    ".sql": re.compile(r"(?P<prose>--[^\n]*|/\*.*?\*/)|'[^']*'", re.DOTALL),
    ".js": re.compile(rf"(?P<prose>/\*.*?\*/|//[^\n]*)|{_STRING}|`(?:\\.|[^`\\])*`", re.DOTALL),
    ".css": re.compile(rf"(?P<prose>/\*.*?\*/)|{_STRING}", re.DOTALL),
    ".html": re.compile(r"(?P<prose><!--.*?-->)", re.DOTALL),
}
_HASH_COMMENTS = {".toml", ".yml", ".yaml", ".ini", ".cfg", ".sh", ".example", ""}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BINARY = {".png", ".ico", ".woff2", ".gz"}


@dataclass(frozen=True, slots=True)
class Prose:
    """A comment or docstring, or a line of a document. `line` is the number of its first line, from 1."""

    line: int
    text: str


@cache
def tracked() -> tuple[Path, ...]:
    """Text files that Git tracks or would track, in the order of their names. Skips the test outside a work tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - any git on the path
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a Git work tree")
    paths = sorted({ROOT / name for name in listed.stdout.decode().split("\0") if name})
    return tuple(path for path in paths if path.suffix not in _BINARY and path.is_file())


def package_of(path: Path) -> str:
    """The top-level directory of a tracked file; `.` for files of the root."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "."


def place(path: Path, line: int) -> str:
    """`path:line`, relative to the repository, as editors and terminals make links of it."""
    return f"{path.relative_to(ROOT)}:{line}"


def prose_of(path: Path) -> Iterator[Prose]:
    """Comments and docstrings of a source file, or the lines of a Markdown file. Nothing for other files."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".py", ".pyi"):
        yield from _python_prose(text)
    elif pattern := _COMMENTS.get(path.suffix):
        for match in pattern.finditer(text):
            if match["prose"]:
                yield Prose(text.count("\n", 0, match.start()) + 1, match["prose"])
    elif path.suffix == ".md":
        yield from (Prose(number, line) for number, line in enumerate(text.splitlines(), 1))
    elif path.suffix in _HASH_COMMENTS:
        for number, line in enumerate(text.splitlines(), 1):
            if match := re.search(r"(?:^|\s)#.*|^\s*;.*", line):
                yield Prose(number, match.group())


def _python_prose(text: str) -> Iterator[Prose]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield Prose(token.start[0], token.string)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
            yield Prose(docstring.lineno, docstring.value.value)
