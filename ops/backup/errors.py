"""Errors of backups, for the operator."""

from __future__ import annotations

from runtime.process.errors import OperatorError


class BackupError(OperatorError):
    """A backup cannot be made, trusted or restored; the message gives the reason and the way out."""
