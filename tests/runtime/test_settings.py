"""Settings: all problems at once, by name and without values; secrets from files; documents that match the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from runtime.process import settings_docs
from runtime.process.settings import PREFIX, Durability, Settings, SettingsError, file_variable, load_settings


def test_defaults_are_valid() -> None:
    settings = load_settings({})
    assert settings == Settings()
    assert settings.durability is Durability.FSYNC
    assert (settings.topology.lanes, settings.topology.shards) == (settings.lanes, settings.shards)


def test_ambient_environment_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSALE_LANES", "9")
    assert load_settings({}).lanes == 4
    assert load_settings().lanes == 9


def test_values_are_parsed() -> None:
    settings = load_settings(
        {
            "FLASHSALE_LANES": "16",
            "FLASHSALE_DURABILITY": "memory",
            "FLASHSALE_SHARD_DSNS": "postgresql://a/0, postgresql://b/1,",
            "FLASHSALE_CORS_ORIGINS": "https://a.example,https://b.example",
            "FLASHSALE_TOKEN_KEYS_FILE": "/keys/tokens.json",
            "OTHER_LANES": "7",
        }
    )
    assert settings.lanes == 16
    assert settings.durability is Durability.MEMORY
    assert [dsn.get_secret_value() for dsn in settings.shard_dsns] == ["postgresql://a/0", "postgresql://b/1"]
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.token_keys_file == Path("/keys/tokens.json")


@pytest.mark.parametrize(("given", "is_enough"), [("a", False), ("a,b", True), ("a,b,c", False), ("", False)])
def test_every_shard_has_its_database_where_all_are_read(given: str, is_enough: bool) -> None:
    settings = load_settings({"FLASHSALE_SHARDS": "2", "FLASHSALE_SHARD_DSNS": given})
    if is_enough:
        settings.require_all_shards()
    else:
        with pytest.raises(SettingsError, match=r"SHARD_DSNS: has \d entries, FLASHSALE_SHARDS is 2"):
            settings.require_all_shards()


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "http://127.0.0.1:6379", ""])
def test_addresses_of_redis_are_checked(url: str) -> None:
    with pytest.raises(SettingsError, match=r"FLASHSALE_REDIS_URL: .*FLASHSALE_CACHE_URL: "):
        load_settings({"FLASHSALE_REDIS_URL": url, "FLASHSALE_CACHE_URL": url})


def test_links_begin_with_an_address_without_a_slash() -> None:
    assert load_settings({"FLASHSALE_LINK_URL": "https://shop.example/staff/"}).link_url == "https://shop.example/staff"


def test_problems_are_reported_together_by_name_without_values(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfehunter2")
    with pytest.raises(SettingsError) as caught:
        load_settings(
            {
                "FLASHSALE_LANES": "hunter2",
                "FLASHSALE_EDGE_PORT": "99999",
                "FLASHSALE_DURABILITY": "hunter2",
                "FLASHSALE_LOG_LEVEL": "hunter2",
                "FLASHSALE_LANE": "hunter2",
                "FLASHSALE_ADMIN_PASSWORD_FILE": str(tmp_path / "absent"),
                "FLASHSALE_CATALOGUE_DSN_FILE": str(binary),
            }
        )
    message = str(caught.value)
    for variable in (
        "LANES",
        "EDGE_PORT",
        "DURABILITY",
        "LOG_LEVEL",
        "LANE",
        "ADMIN_PASSWORD_FILE",
        "CATALOGUE_DSN_FILE",
    ):
        assert f"{PREFIX}{variable}: " in message
    assert "hunter2" not in message
    assert "99999" not in message


@pytest.mark.parametrize(
    ("variable", "bad"),
    [
        ("FLASHSALE_LANES", "0"),
        ("FLASHSALE_LANES", "101"),
        ("FLASHSALE_LANES", "1.5"),
        ("FLASHSALE_LANES", ""),
        ("FLASHSALE_EDGE_PORT", "-1"),
        ("FLASHSALE_ACCESS_TOKEN_S", "901"),
        ("FLASHSALE_BATCH_SIZE_MAX", "65"),
        ("FLASHSALE_LOG_LEVEL", "info"),
    ],
)
def test_out_of_bounds(variable: str, bad: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}: "):
        load_settings({variable: bad})


def test_secret_by_file_is_stripped_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("  hunter2\n")
    settings = load_settings({"FLASHSALE_ADMIN_PASSWORD_FILE": str(secret)})
    assert settings.admin_password is not None
    assert settings.admin_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_set_both_ways_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("one")
    with pytest.raises(SettingsError, match=r"FLASHSALE_ADMIN_PASSWORD: also set by FLASHSALE_ADMIN_PASSWORD_FILE"):
        load_settings({"FLASHSALE_ADMIN_PASSWORD": "two", "FLASHSALE_ADMIN_PASSWORD_FILE": str(secret)})


@pytest.mark.parametrize("name", ["FLASHSALE_NO_SUCH", "FLASHSALE_", "FLASHSALE_TOKEN_KEYS_FILE_FILE"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: unknown setting"):
        load_settings({name: "1"})


def test_settings_do_not_change_after_start() -> None:
    with pytest.raises(ValidationError):
        load_settings({}).lanes = 5  # type: ignore[misc]


def test_documents_are_as_generated() -> None:
    root = Path(__file__).resolve().parents[2]
    for path, text in settings_docs.documents().items():
        assert (root / path).read_text(encoding="utf-8") == text, "run `python -m runtime.process.settings_docs`"


def test_every_setting_is_documented() -> None:
    page, example = settings_docs.documents().values()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `{PREFIX}{name.upper()}` |" in page
        assert f"\n#{PREFIX}{name.upper()}=" in example
        if settings_docs.is_secret(field):
            assert file_variable(name) in example


def test_example_environment_is_the_defaults() -> None:
    assignments = (
        line.removeprefix("#").split("=", 1)
        for line in settings_docs.env_example().splitlines()
        if line.startswith(f"#{PREFIX}")
    )
    assert load_settings({name: value for name, value in assignments if value}) == Settings()
