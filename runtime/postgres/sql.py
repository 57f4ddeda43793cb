"""Loader of `.sql` files made of named blocks. Performs no I/O beyond reading the package's own files.

    -- name: adopt_grants
    -- Sets ... Repeating it changes nothing: ... Index: quota_pkey.
    UPDATE quota ...;

A block is one statement. Its name is an identifier; the comment lines below it say why it may be repeated and which
index it uses. A test requires them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

_HEAD = re.compile(r"^-- name: ([a-z][a-z0-9_]*)$", re.MULTILINE)
_MEANT_AS_HEAD = re.compile(r"^--\s*name\s*:.*$", re.MULTILINE)


class SqlFileError(Exception):
    """A file has no block, a malformed or duplicate name, or a block without a statement; named in the message."""


@dataclass(frozen=True, slots=True)
class Block:
    """A named statement with its description (the comment lines right under the name)."""

    name: str
    description: str
    statement: str


def parse_blocks(text: str, *, source: str) -> dict[str, Block]:
    """The blocks of a file's text by name, in order. `source` names the file in errors."""
    blocks: dict[str, Block] = {}
    heads = list(_HEAD.finditer(text))
    for line in _MEANT_AS_HEAD.findall(text):
        # Otherwise its statement would become a part of the block before it.
        if not _HEAD.fullmatch(line):
            raise SqlFileError(f"{source}: malformed name in {line!r}")
    if not heads:
        raise SqlFileError(f"{source}: no block")
    ends = [head.start() for head in heads[1:]] + [len(text)]
    for head, end in zip(heads, ends, strict=True):
        name = head[1]
        lines = text[head.end() : end].strip().splitlines()
        comment = 0
        while comment < len(lines) and lines[comment].startswith("--"):
            comment += 1
        statement = "\n".join(lines[comment:]).strip().removesuffix(";")
        if not statement:
            raise SqlFileError(f"{source}: {name} has no statement")
        if name in blocks:
            raise SqlFileError(f"{source}: duplicate block {name}")
        description = " ".join(line.removeprefix("--").strip() for line in lines[:comment])
        blocks[name] = Block(name, description, statement)
    return blocks


@cache
def load_sql(package: str, file_name: str) -> Mapping[str, str]:
    """Statements of `file_name` in `package` by block name; read once. SqlFileError when the file is malformed."""
    text = (resources.files(package) / file_name).read_text(encoding="utf-8")
    blocks = parse_blocks(text, source=f"{package}/{file_name}")
    return MappingProxyType({name: block.statement for name, block in blocks.items()})
