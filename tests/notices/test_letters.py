"""Letters and pushes in every language: complete, escaped, and unchanged after their journey as mail."""

from __future__ import annotations

import email
import email.policy
import string
from datetime import UTC, datetime
from email.message import EmailMessage
from importlib import resources
from typing import Any

import pytest

from domain.currencies import in_major_units
from domain.mailed_tokens import SECRET_BYTES, encode_mailed_token
from domain.notices import ORDER_KINDS, NoticeKind
from domain.payments import RefundReason
from notices.composing import STYLES, Composer
from notices.language import Language, UnknownLanguage, language_or, languages
from notices.letters import Recipient, Writer
from notices.samples import SAMPLE_USER, sample

LANGUAGES = list(languages().values())
SECRET = b"s" * SECRET_BYTES
EXPECTED_AMOUNTS = {
    ("en", 123_456_789, "EUR"): "1,234,567.89 EUR",
    ("de", 123_456_789, "EUR"): "1.234.567,89 EUR",
    ("en", 1999, "JPY"): "1,999 JPY",
    ("de", 1999, "JPY"): "1.999 JPY",
    ("en", 1999, "KWD"): "1.999 KWD",
    ("de", 1999, "KWD"): "1,999 KWD",
    ("en", 5, "EUR"): "0.05 EUR",
    ("en", 5, "KWD"): "0.005 KWD",
    ("en", 0, "XPF"): "0 XPF",
    ("en", 100, "ZZZ"): "1.00 ZZZ",
}


@pytest.mark.parametrize(("case", "text"), EXPECTED_AMOUNTS.items())
def test_amounts_have_the_form_of_their_currency(case: tuple[str, int, str], text: str) -> None:
    code, amount_minor, currency = case
    assert languages()[code].amount(amount_minor, currency) == text


def test_major_units() -> None:
    assert [in_major_units(1999, code) for code in ("EUR", "JPY", "KWD")] == [(19, "99"), (1999, ""), (1, "999")]


def test_there_are_two_languages_and_an_unknown_one_falls_back() -> None:
    assert {"en", "de"} <= set(languages())
    assert language_or("de", "en").code == "de"
    assert language_or(None, "de").code == language_or("xx", "de").code == "de"
    with pytest.raises(UnknownLanguage, match="there are: de, en"):
        Writer(sender="a@b.example", link_url="https://x.example", default_language="xx")


def _shape(value: Any) -> Any:
    """Names of a table; the placeholders of a text."""
    if isinstance(value, dict):
        return {name: _shape(member) for name, member in value.items()}
    return sorted(string.Template(value).get_identifiers())


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_every_language_has_the_same_files_words_and_placeholders(language: Language) -> None:
    english = languages()["en"]
    folder = resources.files("notices") / "languages"
    names = {entry.name for entry in (folder / "en").iterdir()}
    assert {entry.name for entry in (folder / language.code).iterdir()} == names
    words, theirs = dict(english.words), dict(language.words)
    for form in ("name", "moment"):
        assert words.pop(form) and theirs.pop(form)
    assert _shape(theirs) == _shape(words)
    for name in names - {"language.toml"}:
        found, wanted = (set(each.template(name).get_identifiers()) for each in (language, english))
        assert found == wanted, name
    assert set(theirs["subjects"]) == set(NoticeKind)
    assert set(theirs["pushes"]) == set(ORDER_KINDS)
    assert set(theirs["reasons"]) == set(RefundReason)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
@pytest.mark.parametrize("kind", NoticeKind)
def test_a_letter_arrives_unchanged(language: Language, kind: NoticeKind) -> None:
    writer = Writer(sender="Shop <no-reply@shop.example>", link_url="https://shop.example/")
    recipient = Recipient(SAMPLE_USER, "Ada@b.example", "ada@b.example", verified=True, language=language.code)
    letter = writer.write(sample(kind), recipient, secret=SECRET, now=datetime.now(UTC))
    raw = letter.as_bytes()
    assert raw.isascii() and all(len(line) < 998 for line in raw.split(b"\r\n"))
    arrived = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(arrived, EmailMessage)
    token = None if STYLES[kind].life is None else encode_mailed_token(SAMPLE_USER, SECRET)
    words = Composer("https://shop.example").letter(sample(kind), language, token=token)
    assert arrived["Subject"] == words.subject
    assert arrived["Content-Language"] == language.code
    for form, text in (("plain", words.text), ("html", words.html)):
        part = arrived.get_body((form,))
        assert part is not None
        assert part.get_content().replace("\r\n", "\n") == text
    assert "$" not in words.text + words.html
    assert f'lang="{language.code}"' in words.html
    if language.code == "en":
        assert {part["Content-Transfer-Encoding"] for part in arrived.iter_parts()} == {"7bit"}
    if language.code == "de" and kind is NoticeKind.ORDER_EXPIRED:
        assert "Die Reservierung lief ab" in words.text


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
@pytest.mark.parametrize("kind", ORDER_KINDS)
def test_letters_and_pushes_of_orders_say_all(language: Language, kind: NoticeKind) -> None:
    notice = sample(kind)
    assert notice.order is not None
    url = f"https://shop.example/shop/orders/{notice.order.order_id}"
    composer = Composer("https://shop.example")
    words, push = composer.letter(notice, language), composer.push(notice, language)
    assert url in words.text and f'href="{url}"' in words.html and push.url == url
    amount = language.amount(notice.order.amount_minor, notice.order.currency)
    assert amount in words.text and amount in words.html and amount in push.body
    for line in notice.order.lines:
        total = language.amount(line.quantity * line.unit_price_minor, notice.order.currency)
        assert f"{line.quantity} x {line.sku}: {total}" in words.text
        assert line.sku in words.html and total in words.html
    assert bool(notice.order.lines) == (kind is not NoticeKind.ORDER_REFUNDED)
    if notice.order.reason is not None:
        assert language.words["reasons"][notice.order.reason] in words.text


def test_names_of_products_are_data_and_no_markup() -> None:
    notice = sample(NoticeKind.ORDER_PAID, sku='<img src="https://x.example">$link')
    words = Composer("https://shop.example").letter(notice, languages()["en"])
    assert "<img" not in words.html and "&lt;img src=&quot;https://x.example&quot;&gt;$link" in words.html
    assert '<img src="https://x.example">$link' in words.text


def test_the_letter_of_an_expired_order_says_why() -> None:
    words = Composer("https://shop.example").letter(sample(NoticeKind.ORDER_EXPIRED), languages()["en"])
    assert "the hold ran out" in words.text and "the hold ran out" in words.html
