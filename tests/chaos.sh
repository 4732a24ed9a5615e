#!/usr/bin/env bash
# Chaos: writers, fifty clients, two relays, and a fault every few seconds.
#
#   tests/chaos.sh [--minutes N] [--seed N]      two minutes and a fresh seed unless told otherwise
set -euo pipefail
cd "$(dirname "$0")/.."
while [ $# -gt 0 ]; do
  case "$1" in
    --minutes) export CHAOS_SECONDS=$(($2 * 60)) ;;
    --seed) export CHAOS_SEED=$2 ;;
    *)
      echo "usage: tests/chaos.sh [--minutes N] [--seed N]" >&2
      exit 2
      ;;
  esac
  shift 2
done
exec deploy/postgres.sh run -- cargo test --locked --test relay in_chaos -- --ignored --nocapture
