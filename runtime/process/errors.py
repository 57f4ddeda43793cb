"""The base of errors that a person resolves."""

from __future__ import annotations


class OperatorError(Exception):
    """Its message explains the failure and the remedy. A command prints it, without a traceback, and exits with 1."""
