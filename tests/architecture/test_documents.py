"""Documents: links and named files exist, and diagrams can be drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, tracked

DOCUMENTS = [path for path in tracked() if path.suffix == ".md"]
_CURRENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # a changelog names removed files
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?<![\w./<{$-])[a-z_]+/[\w./-]+")
_MERMAID = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
_DIRECTORIES = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_to_files(document: Path) -> None:
    links = _LINK.findall(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", _CURRENT, ids=named)
def test_named_paths_exist(document: Path) -> None:
    code = " ".join(_CODE.findall(document.read_text(encoding="utf-8")))
    paths = [match.rstrip(".") for match in _PATH.findall(code)]
    ours = [path for path in paths if path.split("/")[0] in _DIRECTORIES and "NNNN" not in path]
    assert [path for path in ours if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_messages_of_sequence_diagrams_can_be_parsed(document: Path) -> None:
    """Mermaid ends a message at a semicolon, and takes the rest of the line for another statement."""
    diagrams = _MERMAID.findall(document.read_text(encoding="utf-8"))
    lines = [line for diagram in diagrams if diagram.startswith("sequenceDiagram") for line in diagram.splitlines()]
    assert [line for line in lines if ";" in line or "#" in line] == []
