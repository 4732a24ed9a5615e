#!/usr/bin/env bash
# Runs the browser tests: each file against crm-relay demo on a throwaway Postgres of its own.
set -euo pipefail
cd "$(dirname "$0")"
npm ci --silent --no-audit --no-fund
for file in *.test.mjs; do
  ../../deploy/postgres.sh run -- node --test "$file"
done
