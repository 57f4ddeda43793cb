"""Comments, docstrings and documents are plain English: few clauses with *what* and *who*, and short lines."""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, Prose, package_of, place, prose_of, tracked

# The top-level directories that this test reads; `.` stands for the files of the root.
CHECKED = sorted({package_of(path) for path in tracked()})
LINE_LENGTH_MAX = 120
# Per 1,000 words. Such a clause hides the actor or the thing that a noun would name.
LIMITS_PER_1000 = {
    re.compile(r"\bwhat\b", re.IGNORECASE): 1.5,
    re.compile(r"\b(?:who|whose|whoever|nobody|everybody|somebody|anybody)\b", re.IGNORECASE): 1.0,
}
# A word that a text cannot avoid is quoted or marked: `what`, "who", *nobody*.
_QUOTED = re.compile(r"`[^`\n]*`|\"[^\"\n]*\"|\*[^*\n]+\*")
_LINK = re.compile(r"https?://\S+")
_PRAGMA = re.compile(r"\s+# (?:noqa|type:|fmt:).*$")
# Released migrations never change, comments included: databases record their checksums.
_RELEASED = re.compile(r"migrations/(?:catalogue/000[1-6]|shard/000[1-7])_\w+\.sql")


def _prose(package: str) -> list[tuple[Path, Prose]]:
    return [
        (path, prose)
        for path in tracked()
        if package_of(path) == package and not _RELEASED.fullmatch(path.relative_to(ROOT).as_posix())
        for prose in prose_of(path)
    ]


@pytest.mark.parametrize("package", CHECKED)
def test_sentences_name_the_actor_and_the_thing(package: str) -> None:
    passages = _prose(package)
    words = sum(len(prose.text.split()) for _, prose in passages)
    for pattern, per_1000 in LIMITS_PER_1000.items():
        found = [
            f"{place(path, prose.line)}: {' '.join(prose.text.split())[:120]}"
            for path, prose in passages
            for _ in pattern.finditer(_QUOTED.sub("", prose.text))
        ]
        allowed = ceil(per_1000 * words / 1000)
        assert len(found) <= allowed, "\n".join([f"{len(found)} of at most {allowed} in {words} words:", *found])


@pytest.mark.parametrize("package", CHECKED)
def test_lines_of_prose_are_readable(package: str) -> None:
    wrong = [
        place(path, prose.line + offset)
        for path, prose in _prose(package)
        # A table of Markdown has a row in each line, however long it is.
        if not (path.suffix == ".md" and prose.text.startswith("|"))
        for offset, line in enumerate(_whole_lines(path, prose))
        if len(_PRAGMA.sub("", _LINK.sub("", line))) > LINE_LENGTH_MAX
    ]
    assert not wrong, "\n".join([f"lines of more than {LINE_LENGTH_MAX} characters:", *wrong])


def _whole_lines(path: Path, prose: Prose) -> list[str]:
    """The lines of the file that the passage covers, indentation and code before a comment included."""
    last = prose.line + prose.text.count("\n")
    return path.read_text(encoding="utf-8").splitlines()[prose.line - 1 : last]


def test_prose_is_found_in_every_language(tmp_path: Path) -> None:
    for name, source, expected in (
        ("a.py", '"""One."""\nx = "# no"  # two\n', [(1, "One."), (2, "# two")]),
        ("a.pyx", '"""One."""\ncdef char c = c"#"  # two\n', [(1, '"""One."""'), (2, "# two")]),
        ("a.lua", "-- one\nlocal x = '-- no' -- two\n", [(1, "-- one"), (2, "-- two")]),
        ("a.sql", "-- one\nSELECT '--no'; /* two */\n", [(1, "-- one"), (2, "/* two */")]),
        ("a.js", "// one\nlet x = 'http://no'; /* two */\n", [(1, "// one"), (2, "/* two */")]),
        ("a.css", "/* one */\na { content: '/* no */'; } /* two */\n", [(1, "/* one */"), (2, "/* two */")]),
        ("a.html", "<!-- one -->\n<p>no</p> <!-- two -->\n", [(1, "<!-- one -->"), (2, "<!-- two -->")]),
        ("a.toml", "# one\nx = 1 # two\n", [(1, "# one"), (2, " # two")]),
    ):
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        assert sorted((prose.line, prose.text) for prose in prose_of(path)) == expected, name


def test_every_package_is_read() -> None:
    assert {"domain", "hotpath", "tests", "docs"} <= set(CHECKED)
    assert (ROOT / "docs").is_dir()
