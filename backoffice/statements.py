"""SQL out of `.sql` files: blocks that begin with `-- name: x`, each with a sentence on its index and on repetition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import LiteralString, cast

_BLOCK = re.compile(r"^-- name: ([a-z_]+)$", re.MULTILINE)


def load_statements(package: str, file: str) -> Mapping[str, LiteralString]:
    """Statements of a file in a package, by name."""
    text = (resources.files(package) / file).read_text(encoding="utf-8")
    parts = _BLOCK.split(text)
    names = parts[1::2]
    assert len(set(names)) == len(names), f"{file}: a name twice"
    # The project's own files, never input: what psycopg asks a LiteralString for.
    return {name: cast(LiteralString, block.strip()) for name, block in zip(names, parts[2::2], strict=True)}
