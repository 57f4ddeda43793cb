"""Names that occur in several places agree: settings, problem codes, documents."""

from __future__ import annotations

import re

from domain.problems import Problem
from runtime.process.settings import PREFIX, Settings, file_variable
from tests.architecture.sources import ROOT, tracked

_VARIABLE = re.compile(rf"\b{PREFIX}[A-Z][A-Z0-9_]*[A-Z0-9]\b")
# Placeholders in prose, and names that a test expects to be refused.
_STAND_INS = {"FLASHSALE_X", "FLASHSALE_X_FILE", "FLASHSALE_NO_SUCH"}
_TEXT = {".py", ".md", ".yml", ".yaml", ".toml", ".sh", ".pyx", ".sql", ".lua", ""}


def test_every_variable_named_anywhere_is_a_setting() -> None:
    known = _STAND_INS | {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {variable for name in Settings.model_fields if (variable := file_variable(name))}
    wrong = [
        f"{path.relative_to(ROOT)}: {variable}"
        for path in tracked()
        if path.suffix in _TEXT and path != ROOT / "tests/runtime/test_settings.py"
        for variable in sorted(set(_VARIABLE.findall(path.read_text(encoding="utf-8"))))
        if variable not in known
    ]
    assert not wrong


def test_adrs_are_numbered_and_shaped() -> None:
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        text = path.read_text(encoding="utf-8")
        for heading in ("## Context", "## Decision", "## Consequences", "## Alternatives considered"):
            assert heading in text, f"{path.name}: {heading}"


def test_links_between_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    wrong = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in link.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not wrong


def test_coverage_has_one_line_per_requirement() -> None:
    text = (ROOT / "docs/coverage.md").read_text(encoding="utf-8")
    found = [int(number) for number in re.findall(r"^\| R(\d+) \|", text, re.MULTILINE)]
    assert found == list(range(1, 75))


def test_coverage_names_tests_that_exist() -> None:
    text = (ROOT / "docs/coverage.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`((?:tests|perf)/[\w./-]+)`", text)):
        assert (ROOT / name).exists(), name


def test_glossary_explains_the_words_of_the_code() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").lower()
    for term in (
        "sale", "sku", "stock", "hold", "order", "idempotency key", "lane", "virtual bucket", "shard", "relay",
        "outbox", "dead-letter queue", "attempt", "drain", "accepted", "stored", "refused", "rejected", "lease",
        "fencing token", "epoch", "grant", "quota",
    ):  # fmt: skip
        assert f"**{term}**" in text, term


def test_problem_codes_are_spelled_by_the_enum_alone() -> None:
    """A code spelled as a string in a service would drift from the table."""
    words_of_their_own = {Problem.SOLD_OUT, Problem.NOT_FOUND}  # an availability, a reply of a script
    codes = {f'"{problem.value}"' for problem in Problem if "_" in problem.value and problem not in words_of_their_own}
    wrong = [
        f"{path.relative_to(ROOT)}: {code}"
        for package in ("edge", "backoffice", "workers", "runtime")
        for path in (ROOT / package).rglob("*.py")
        for code in sorted(codes)
        if code in path.read_text(encoding="utf-8")
    ]
    assert not wrong
