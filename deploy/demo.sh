#!/usr/bin/env bash
# The demo: a small CRM on a throwaway Postgres, live in the browser. Ctrl-C leaves nothing behind.
# With DATABASE_URL set that database is used, if it has none of the CRM's tables.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo >/dev/null; then
  echo "deploy/demo.sh: Rust is missing; install it from https://rustup.rs" >&2
  exit 1
fi
if ! command -v cc >/dev/null && command -v apt-get >/dev/null; then
  if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
  $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends gcc libc6-dev
fi
cargo build --release --locked
if [ -n "${DATABASE_URL:-}" ]; then
  exec target/release/crm-relay demo
fi
deploy/postgres.sh install
exec deploy/postgres.sh run -- target/release/crm-relay demo
