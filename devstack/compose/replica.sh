#!/bin/bash
# Starts the streaming replica of the server PRIMARY; copies that server first, if this one has no data.
# Secret: replication_password. A copy that was interrupted starts again from nothing.
set -euo pipefail
export PGPASSFILE=${PGPASSFILE:-/tmp/pgpass}
(umask 077; echo "*:*:*:replicator:$(< "${SECRETS:-/run/secrets}/replication_password")" > "$PGPASSFILE")
if [[ ! -s $PGDATA/PG_VERSION ]]; then
    copy=$(dirname "$PGDATA")/copy
    rm -rf "$copy"
    # The replica's settings name the file with the password, not the password.
    pg_basebackup --pgdata="$copy" --wal-method=stream --checkpoint=fast --slot=replica --write-recovery-conf \
        --dbname="host=$PRIMARY port=${PRIMARY_PORT:-5432} user=replicator application_name=replica passfile=$PGPASSFILE"
    mv "$copy" "$PGDATA"
fi
exec docker-entrypoint.sh "$@"
