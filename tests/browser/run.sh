#!/usr/bin/env bash
# Runs the tests of the browser's side: first what needs no relay, then each file against crm-relay demo on a
# throwaway Postgres of its own. SCREENS=1 keeps the screenshots.
set -euo pipefail
cd "$(dirname "$0")"
for part in . app ../contract; do
  (cd "$part" && npm ci --silent --no-audit --no-fund)
done
../python.sh >/dev/null
node --test unit/*.test.mjs
(cd app && npm run --silent build)
for file in *.test.mjs; do
  ../../deploy/postgres.sh run -- node --test "$file"
done
