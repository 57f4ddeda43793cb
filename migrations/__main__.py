"""Brings every database of the settings to the newest schema: `python -m migrations`. Exit status 1 if one fails."""

from __future__ import annotations

import sys

from migrations.runner import MigrationError, migrate_all
from runtime.process.settings import SettingsError, load_settings


def main() -> int:
    """Migrate and print a line per database."""
    try:
        applied = migrate_all(load_settings())
    except (MigrationError, SettingsError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command's answer
        return 1
    for database, names in applied.items():
        print(f"{database}: {', '.join(names) if names else 'up to date'}")  # noqa: T201 - the command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
