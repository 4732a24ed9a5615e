#!/usr/bin/env bash
# Runs the SQL tests (pgTAP) on the server of PG*: each file in a fresh database with the CRM and the
# relay's schema, installed by plain psql.
set -euo pipefail
cd "$(dirname "$0")/../.."

status=0
ran=0
if [ $# -eq 0 ]; then set -- tests/sql/*.sql; fi
for file in "$@"; do
  ran=$((ran + 1))
  database=sql_$$_$ran
  psql -q -d postgres -c "create database $database"
  psql -q -v ON_ERROR_STOP=1 -d "$database" -f deploy/crm.sql
  psql -q -v ON_ERROR_STOP=1 -d "$database" -f sql/install.sql 2>/dev/null
  psql -q -d "$database" -c 'create extension pgtap' -c 'create extension plpgsql_check'
  PGOPTIONS="-c client_min_messages=warning" pg_prove --failures --comments --ext .sql -d "$database" "$file" || status=1
  psql -q -d postgres -c "drop database $database with (force)"
done
[ "$ran" -gt 0 ] || { echo "no SQL tests found" >&2; exit 1; }
exit "$status"
