"""Writes the schema files that `test_runner` compares with: `python -m tests.migrations.snapshot`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from devstack.servers import PostgresServer
from tests.fixtures.fix_databases import migrated_databases
from tests.migrations.schema import describe


def main() -> None:
    """Migrate fresh databases on a server of its own and write down their schemas."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder), settings=["fsync=off"])
        server.start()
        try:
            databases = migrated_databases(server)
            (here / "catalogue.schema").write_text(describe(databases.catalogue_dsn), encoding="utf-8")
            (here / "shard.schema").write_text(describe(databases.shard_dsns[0]), encoding="utf-8")
            (here / "analytics.schema").write_text(describe(databases.analytics_dsn), encoding="utf-8")
        finally:
            server.destroy()


if __name__ == "__main__":
    main()
