"""The error of a rebuild."""

from __future__ import annotations


class RebuildError(Exception):
    """The figures are as before; the message says why, and what to do."""
