#!/usr/bin/env bash
# Soak: an hour of steady traffic, with clients that stay and clients that come and go.
#
#   tests/soak.sh [--minutes N] [--into DIRECTORY]
#
# Leaves soak.csv (a sample each five seconds) and soak.svg (memory over time) in the directory, which
# is target/ unless told otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
export SOAK_INTO=${CARGO_TARGET_DIR:-target}
while [ $# -gt 0 ]; do
  case "$1" in
    --minutes) export SOAK_SECONDS=$(($2 * 60)) ;;
    --into) SOAK_INTO=$2 ;;
    *)
      echo "usage: tests/soak.sh [--minutes N] [--into DIRECTORY]" >&2
      exit 2
      ;;
  esac
  shift 2
done
mkdir -p "$SOAK_INTO"
SOAK_INTO=$(realpath "$SOAK_INTO")
exec deploy/postgres.sh run -- cargo test --release --locked --test relay in_an_hour -- --ignored --nocapture
