#!/bin/bash
# Runs once, at the end of the initialisation of a primary: the role and the slot of its replica.
# Secret: replication_password. FURTHER_DATABASE: a second database, or nothing.
set -euo pipefail
password=$(< "${SECRETS:-/run/secrets}/replication_password")
psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<SQL
CREATE ROLE replicator LOGIN REPLICATION PASSWORD '$password';
SELECT FROM pg_create_physical_replication_slot('replica', true);
SQL
if [[ -n ${FURTHER_DATABASE-} ]]; then
    createdb --username="$POSTGRES_USER" "$FURTHER_DATABASE"
fi
echo 'host replication replicator all scram-sha-256' >> "$PGDATA/pg_hba.conf"
# Last, and effective from the next start: from then on a COMMIT waits for the replica.
psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" \
    --command="ALTER SYSTEM SET synchronous_standby_names = 'replica'"
