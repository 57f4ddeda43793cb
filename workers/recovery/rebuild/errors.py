"""Reasons why a rebuild stops. Each run may be repeated; the sale stays closed until then."""

from __future__ import annotations


class RebuildError(Exception):
    """The message is for the operator."""


class Healthy(RebuildError):
    """Every lane has the sale; a rebuild would only close it for a while."""


class NotPublished(RebuildError):
    """There is no such sale, it was never published, or it ended so long ago that it has left Redis."""


class Busy(RebuildError):
    """Another rebuild of the sale is running, or buckets move between shards."""


class Stuck(RebuildError):
    """Another process does not do its part; the message names it."""


class Superseded(RebuildError):
    """Another rebuild took over, or Redis lost the sale again."""
