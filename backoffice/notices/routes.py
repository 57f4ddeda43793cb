"""Preferences, subscriptions and previews over HTTP."""

from __future__ import annotations

from backoffice.notices.documents import (
    LanguageView,
    NewSubscription,
    PreferencesChange,
    PreferencesView,
    PushKeyView,
    PushView,
    SampleList,
    SampleView,
    SubscriptionList,
    SubscriptionQuery,
    SubscriptionView,
    order_notices,
    subscription_view,
)
from backoffice.notices.service import NoticeService
from backoffice.notices.store import Preferences
from backoffice.web.messages import EVERYONE, STAFF, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.notices import NoticeKind
from domain.problems import Problem
from notices.composing import Composer
from notices.language import language_or, languages
from notices.samples import sample, sample_token
from runtime.audit import Action


class NoticeRoutes:
    """The operations."""

    def __init__(self, service: NoticeService, composer: Composer, *, default_language: str) -> None:
        """Uses its arguments, owns nothing."""
        self._service = service
        self._composer = composer
        self._default_language = default_language

    async def preferences(self, call: Call) -> Answer:
        """The choices of the caller's own account."""
        return self._shown(await self._service.preferences(call.who.user_id))

    async def change_preferences(self, call: Call, body: PreferencesChange) -> Answer:
        """Change some of them."""
        return self._shown(await self._service.change(call.who.user_id, body))

    async def subscriptions(self, call: Call) -> Answer:
        """The browsers of the caller's own account."""
        rows = await self._service.subscriptions(call.who.user_id)
        return Answer(body=SubscriptionList(items=[subscription_view(row) for row in rows]))

    async def subscribe(self, call: Call, body: NewSubscription) -> Answer:
        """Add a browser, or give a known one its new keys."""
        row, is_new = await self._service.subscribe(call.who.user_id, body)
        return Answer(201 if is_new else 200, subscription_view(row))

    async def unsubscribe(self, call: Call, query: SubscriptionQuery) -> Answer:
        """Remove one browser, or all."""
        await self._service.unsubscribe(call.who.user_id, query.endpoint)
        return Answer(204)

    async def push_key(self, _: Call) -> Answer:
        """The key that a page passes to its browser."""
        return Answer(body=PushKeyView(public_key=self._service.push_key))

    async def samples(self, _: Call) -> Answer:
        """The letters that there are."""
        named = [LanguageView(code=language.code, name=language.name) for language in languages().values()]
        return Answer(body=SampleList(kinds=[kind.value for kind in NoticeKind], languages=named))

    async def sample(self, call: Call) -> Answer:
        """One letter, and the push of its kind, of sample data."""
        code, name = call.path_params["language"], call.path_params["kind"]
        if code not in languages() or name not in set(NoticeKind):
            raise Refused(Problem.NOT_FOUND, "There is no letter of this kind and language")
        kind, language = NoticeKind(name), languages()[code]
        notice = sample(kind)
        words = self._composer.letter(notice, language, token=sample_token(kind))
        push = None
        if notice.order is not None:
            shown = self._composer.push(notice, language)
            push = PushView(title=shown.title, body=shown.body, url=shown.url)
        return Answer(
            body=SampleView(
                kind=name, language=code, subject=words.subject, text=words.text, html=words.html, push=push
            )
        )

    def _shown(self, preferences: Preferences) -> Answer:
        view = PreferencesView(
            language=language_or(preferences.language, self._default_language).code,
            languages=list(languages()),
            email=order_notices(preferences.email_off),
            push=order_notices(preferences.push_off),
        )
        return Answer(body=view, headers={"cache-control": "private, no-cache"})


def routes(notices: NoticeRoutes) -> tuple[Route, ...]:
    """Operations of this subject."""
    preferences, subscriptions = "/v1/users/me/preferences", "/v1/users/me/push-subscriptions"
    missing = (Problem.USER_NOT_FOUND,)
    changing = (*missing, Problem.RATE_LIMITED)
    return (
        Route(
            "GET",
            preferences,
            notices.preferences,
            "Read the language of the caller's notices, and which of them the caller wants",
            "users",
            roles=EVERYONE,
            answers=PreferencesView,
            problems=missing,
        ),
        Route(
            "PATCH",
            preferences,
            notices.change_preferences,
            "Change the language of the caller's notices, or which of them the caller wants",
            "users",
            roles=EVERYONE,
            body=PreferencesChange,
            answers=PreferencesView,
            problems=changing,
            action=Action.USER_CHANGE,
        ),
        Route(
            "GET",
            subscriptions,
            notices.subscriptions,
            "List the browsers that show the caller's web pushes",
            "users",
            roles=EVERYONE,
            answers=SubscriptionList,
            problems=missing,
        ),
        Route(
            "POST",
            subscriptions,
            notices.subscribe,
            "Subscribe a browser to the caller's web pushes; a known one gets 200",
            "users",
            roles=EVERYONE,
            body=NewSubscription,
            answers=SubscriptionView,
            status=201,
            problems=(*changing, Problem.NOT_FOUND),
            action=Action.USER_CHANGE,
        ),
        Route(
            "DELETE",
            subscriptions,
            notices.unsubscribe,
            "Unsubscribe a browser from the caller's web pushes, or all browsers",
            "users",
            roles=EVERYONE,
            query=SubscriptionQuery,
            status=204,
            problems=missing,
            action=Action.USER_CHANGE,
        ),
        Route(
            "GET",
            "/v1/push-key",
            notices.push_key,
            "Read the public key for web push",
            "users",
            answers=PushKeyView,
            problems=(Problem.NOT_FOUND,),
        ),
        Route(
            "GET",
            "/v1/notice-samples",
            notices.samples,
            "List the kinds and languages of notices",
            "operations",
            roles=STAFF,
            answers=SampleList,
        ),
        Route(
            "GET",
            "/v1/notice-samples/{kind}/{language}",
            notices.sample,
            "Preview a notice with sample data",
            "operations",
            roles=STAFF,
            answers=SampleView,
            problems=(Problem.NOT_FOUND,),
        ),
    )
