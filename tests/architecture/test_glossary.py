"""One word per concept: no file uses a synonym that `docs/glossary.md` bans, or a reserved term for another concept.

The glossary is a set of tables. The last column of a table with the heading `not` or `do not use` lists synonyms; those
in backticks are banned everywhere: in names, comments, docstrings, messages, tests and documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.architecture.sources import ROOT, package_of, place, tracked

GLOSSARY = ROOT / "docs/glossary.md"
# The top-level directories that this test reads; `.` stands for the files of the root.
CHECKED = sorted({package_of(path) for path in tracked()})
# Terms of one concept, each with the paths that may use it. Everywhere else the same word would name another concept.
RESERVED = {
    # The second check of stock in PostgreSQL. The protection of HTTP is *admission*.
    "guard": ("workers/", "migrations/", "faults/", "tests/workers/", "tests/devstack/", "tests/faults/", "docs/", "."),
}
# Synonyms that the glossary does not list because they are too common to name there; bad only as names of a type.
BANNED_TYPES = {"Crowd": "name the actor: LoadGenerator, Buyers"}


class Exemption(NamedTuple):
    """A banned word that is right in one place."""

    word: str
    path: str  # a file, or a directory with its trailing slash
    line: str  # a regular expression that the line matches
    reason: str


ALLOWED: tuple[Exemption, ...] = (
    Exemption("", "docs/glossary.md", "", "lists the banned words"),
    Exemption("", "tests/architecture/test_glossary.py", "", "lists the banned words"),
    Exemption("", "CHANGELOG.md", "", "describes earlier versions in their own words"),
    Exemption("", "LICENSE", "", "the text of another author"),
    Exemption("", "devstack/compose/locks/", "", "names of packages of other authors"),
)

_ROW = re.compile(r"^\|(?P<cells>.+)\|\s*$")
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\-./:]+")


def banned_synonyms(glossary: str) -> dict[str, str]:
    """Banned word -> the term to use instead."""
    banned: dict[str, str] = {}
    lists_synonyms = False
    for line in glossary.splitlines():
        match = _ROW.match(line)
        if match is None:
            lists_synonyms = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", match["cells"])]
        if cells[-1].lower() in ("not", "do not use"):
            lists_synonyms = True
        elif lists_synonyms:
            for word in re.findall(r"`([^`]+)`", cells[-1]):
                banned[_spaced(word)] = cells[0].strip("*` ")
    return banned


def _spaced(text: str) -> str:
    """Lower-case words with single spaces: `orderId`, `order_id` and `Order ID` read alike."""
    return " ".join(_WORD_ENDS.sub(" ", text).lower().split())


def _pattern(words: set[str]) -> re.Pattern[str]:
    """Finds each word or phrase, plurals included."""
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"\b(?P<word>{alternatives})(?:s|es)?\b" if words else r"(?P<word>\b\B)")


def _is_allowed(word: str, path: Path, line: str) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return any(
        exemption.word in ("", word)
        and (name == exemption.path or (exemption.path.endswith("/") and name.startswith(exemption.path)))
        and re.search(exemption.line, line)
        for exemption in ALLOWED
    )


def _may_use(term: str, path: Path) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return any(name.startswith(area) or (area == "." and "/" not in name) for area in RESERVED[term])


def _found(package: str, pattern: re.Pattern[str]) -> Iterator[tuple[Path, int, str, str]]:
    """Path, line number, line and word of each place where a file of the package has one of the words."""
    for path in tracked():
        if package_of(path) != package:
            continue
        if match := pattern.search(_spaced(path.relative_to(ROOT).as_posix())):
            yield path, 1, "", match["word"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in pattern.finditer(_spaced(line)):
                yield path, number, line, match["word"]


@pytest.mark.parametrize("package", CHECKED)
def test_banned_synonyms_are_not_used(package: str) -> None:
    banned = banned_synonyms(GLOSSARY.read_text(encoding="utf-8"))
    wrong = [
        f'{place(path, number)}: "{word}", the term is "{banned[word]}"'
        for path, number, line, word in _found(package, _pattern(set(banned)))
        if not _is_allowed(word, path, line)
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize("package", CHECKED)
def test_reserved_terms_name_one_concept(package: str) -> None:
    wrong = [
        f'{place(path, number)}: "{word}" is reserved, docs/glossary.md says for which concept'
        for path, number, line, word in _found(package, _pattern(set(RESERVED)))
        if not _may_use(word, path) and not _is_allowed(word, path, line)
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize("package", CHECKED)
def test_no_type_has_a_banned_name(package: str) -> None:
    declared = re.compile(rf"^\s*(?:cdef )?class ({'|'.join(BANNED_TYPES)})\b")
    wrong = [
        f"{place(path, number)}: {BANNED_TYPES[match[1]]}"
        for path in tracked()
        if package_of(path) == package and path.suffix in (".py", ".pyx", ".pxd", ".pyi")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := declared.match(line))
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_the_glossary_bans_synonyms() -> None:
    assert banned_synonyms(GLOSSARY.read_text(encoding="utf-8"))


def test_the_table_is_read() -> None:
    heading = "| word | meaning | do not use |\n|---|---|---|\n"
    row = "| **load generator** | sends requests | `crowd`, mob, `buyer bot` |\n"
    assert banned_synonyms(heading + row) == {"crowd": "load generator", "buyer bot": "load generator"}
    assert banned_synonyms("| word | meaning |\n|---|---|\n| **sale** | `sale_id` names it |\n") == {}


@pytest.mark.parametrize(
    "line",
    ["class Crowd:", "the crowds", "CROWD_MAX = 3", "buyerBot()", "buyer_bots", "a buyer bot, again", "crowd.py"],
)
def test_a_banned_word_is_seen_in_any_spelling(line: str) -> None:
    assert _pattern({"crowd", "buyer bot"}).search(_spaced(line))


@pytest.mark.parametrize("line", ["crowded", "overcrowd", "buyer", "a bot of a buyer"])
def test_other_words_are_not_mistaken_for_it(line: str) -> None:
    assert not _pattern({"crowd", "buyer bot"}).search(_spaced(line))
