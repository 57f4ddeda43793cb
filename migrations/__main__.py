"""Migrates every database of the settings: `python -m migrations [--post]`. Exit status 1 if one fails.

As `flashsale migrate`: without `--post`, the code of the last release still works afterwards.
"""

from __future__ import annotations

import argparse
import sys

from migrations.files import MigrationError, Phase
from migrations.runner import migrate_all
from runtime.process.settings import SettingsError, load_settings


def main() -> int:
    """Migrate and print a line per database."""
    parser = argparse.ArgumentParser(prog="python -m migrations")
    parser.add_argument("--post", action="store_true", help="also the files that contract the schema")
    until = Phase.POST if parser.parse_args().post else Phase.PRE
    try:
        applied = migrate_all(load_settings(), until=until)
    except (MigrationError, SettingsError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command's answer
        return 1
    for database, names in applied.items():
        print(f"{database}: {', '.join(names) if names else 'up to date'}")  # noqa: T201 - the command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
