"""Composition of this subject."""

from __future__ import annotations

from backoffice.limits.attempts import Attempts
from backoffice.notices import routes
from backoffice.notices.service import NoticeService
from backoffice.notices.store import NoticeStore
from backoffice.stores import Stores
from notices.composing import Composer
from notices.language import require_language
from runtime.process.settings import Settings


class NoticeParts:
    """Raises UnknownLanguage for a default language without a folder."""

    def __init__(self, settings: Settings, stores: Stores, attempts: Attempts) -> None:
        """Uses its arguments, owns nothing."""
        service = NoticeService(
            NoticeStore(stores),
            attempts,
            push_key=settings.vapid_public_key,
            test_services=bool(settings.push_addresses_allowed),
        )
        language = require_language(settings.default_language)
        self.routes = routes.routes(
            routes.NoticeRoutes(service, Composer(settings.link_url), default_language=language)
        )
