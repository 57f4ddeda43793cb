"""`flashsale vapid-key`: prints a key as settings, and stores it nowhere."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from ops.cli import app
from runtime.process.settings import load_settings
from runtime.tokens.vapid import VapidKey


def test_the_printed_settings_are_a_pair() -> None:
    shown = CliRunner().invoke(app, ["vapid-key"])
    assert shown.exit_code == 0
    settings = load_settings(dict(line.split("=", 1) for line in shown.stdout.splitlines()))
    assert settings.vapid_key is not None
    assert VapidKey.parse(settings.vapid_key.get_secret_value()).public == settings.vapid_public_key


def test_json() -> None:
    made = json.loads(CliRunner().invoke(app, ["vapid-key", "--json"]).stdout)
    assert VapidKey.parse(made["FLASHSALE_VAPID_KEY"]).public == made["FLASHSALE_VAPID_PUBLIC_KEY"]
    assert json.loads(CliRunner().invoke(app, ["vapid-key", "--json"]).stdout) != made
