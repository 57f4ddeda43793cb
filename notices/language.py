"""A language: its templates, short texts, and forms of amounts, times and durations."""

from __future__ import annotations

import html
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from string import Template
from typing import Any, Final

from domain.currencies import in_major_units

ENGLISH: Final = "en"
_FOLDER: Final = resources.files("notices") / "languages"


class UnknownLanguage(ValueError):
    """There is no folder for the language. The message lists those that exist."""


@dataclass(frozen=True, slots=True)
class Language:
    """`code` is the name of the folder (BCP 47, such as `de`), `words` the content of `language.toml`."""

    code: str
    words: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its own name for itself."""
        return str(self.words["name"])

    def template(self, name: str) -> Template:
        """A template of its folder, such as `order_paid.txt`."""
        return _template(f"languages/{self.code}/{name}")

    def amount(self, amount_minor: int, currency: str) -> str:
        """An amount in the currency's own form, such as `1,234.50 EUR`, `1,235 JPY`, `1.235 KWD`."""
        whole, fraction = in_major_units(amount_minor, currency)
        grouped = f"{whole:,}".replace(",", self.words["thousands"])
        return f"{grouped}{self.words['decimal']}{fraction} {currency}" if fraction else f"{grouped} {currency}"

    def moment(self, unix_ms: int) -> str:
        """A time in UTC, to the minute."""
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime(self.words["moment"])

    def duration(self, life: timedelta) -> str:
        """A duration in minutes, hours or days."""
        minutes = int(life.total_seconds()) // 60
        unit, count = ("minutes", minutes) if minutes < 120 else ("hours", minutes // 60)
        if unit == "hours" and count >= 48:
            unit, count = "days", count // 24
        return f"{count} {self.words['units'][unit]}"


def languages() -> Mapping[str, Language]:
    """All languages by code, sorted."""
    return _languages()


def language_or(code: str | None, otherwise: str) -> Language:
    """The language of the code, or the other one where there is none: a folder may have been removed."""
    known = languages()
    return known[code] if code is not None and code in known else known[otherwise]


def require_language(code: str) -> str:
    """The code; UnknownLanguage unless there is a folder for it."""
    if code not in languages():
        raise UnknownLanguage(f"no language {code!r}; there are: {', '.join(languages())}")
    return code


def fill(template: Template, values: Mapping[str, str], *, markup: Mapping[str, str] | None = None) -> str:
    """The template with its values; with `markup` an HTML template: values are escaped, those in `markup` are not."""
    if markup is None:
        return template.substitute(values)
    return template.substitute({name: html.escape(value) for name, value in values.items()} | dict(markup))


def page() -> Template:
    """The HTML around the body of each letter."""
    return _template("page.html")


@cache
def _languages() -> Mapping[str, Language]:
    folders = sorted((entry for entry in _FOLDER.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    return {
        folder.name: Language(folder.name, tomllib.loads((folder / "language.toml").read_text(encoding="utf-8")))
        for folder in folders
        if (folder / "language.toml").is_file()
    }


@cache
def _template(path: str) -> Template:
    return Template((resources.files("notices") / path).read_text(encoding="utf-8"))
