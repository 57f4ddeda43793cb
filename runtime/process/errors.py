"""The base of errors that a person resolves."""

from __future__ import annotations


class OperatorError(Exception):
    """The message says what happened and what to do. A command prints it without a traceback and exits with status 1."""
