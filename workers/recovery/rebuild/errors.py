"""Why a rebuild does not go on. Each may be tried again; the sale stays closed meanwhile."""

from __future__ import annotations


class RebuildError(Exception):
    """The message is for the operator."""


class Healthy(RebuildError):
    """There is nothing to rebuild, and rebuilding would close the sale for a while."""


class NotPublished(RebuildError):
    """There is no such sale, it was never published, or it is over for so long that Redis need not know it."""


class Busy(RebuildError):
    """Another rebuild of the sale is at work."""


class Stuck(RebuildError):
    """Something that must happen elsewhere does not: the message names it."""


class Superseded(RebuildError):
    """Another rebuild took over, or Redis lost the sale again."""
