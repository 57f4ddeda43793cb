#!/bin/sh
# PgBouncer before the PostgreSQL server UPSTREAM. Its file is written at each start: the root file system is read-only.
set -eu
umask 077
printf '[databases]\n* = host=%s port=5432\n%%include /etc/pgbouncer/common.ini\n' "$UPSTREAM" > /tmp/pgbouncer.ini
exec pgbouncer /tmp/pgbouncer.ini
