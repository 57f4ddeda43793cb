"""The topics that are counted."""

from __future__ import annotations

from typing import Final

from domain.topology import TOPIC_ORDERS, TOPIC_PAYMENTS, TOPICS

COUNTED_TOPICS: Final = tuple(topic for topic in TOPICS if topic.name in (TOPIC_ORDERS, TOPIC_PAYMENTS))
