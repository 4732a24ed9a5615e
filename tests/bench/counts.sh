#!/usr/bin/env bash
# Instructions that each step of an event's way takes, counted by valgrind: they repeat, on a busy machine, too.
#
#   tests/bench/counts.sh           beside those that are kept in counts.tsv; fails where one is a twentieth more
#   tests/bench/counts.sh --keep    keeps them instead
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v valgrind >/dev/null || { echo "tests/bench/counts.sh: please install valgrind" >&2; exit 1; }
# ours alone is built with what cargo says of where it put it
program=$(cargo bench --locked --bench counts --no-run --message-format=json 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*counts-[^"]*\)".*/\1/p')

count() {
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$@" 2>&1 | sed -n 's/.*Collected : //p'
}

kept=tests/bench/counts.tsv
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
failed=0
printf '%-10s %14s %14s\n' step instructions kept
# tell: an event from its change on, to one member beside nine in rooms of their own; crowd: beside ten thousand
for step in decode diff event encode compress push tell crowd hear; do
  # what it takes to begin is in both
  each=$((($(count $step 2000) - $(count $step 1000)) / 1000))
  before=$(sed -n "s/^$step\t//p" "$kept" 2>/dev/null || true)
  printf '%s\t%s\n' "$step" "$each" >>"$fresh"
  printf '%-10s %14s %14s\n' "$step" "$each" "${before:--}"
  if [ -n "$before" ] && [ $((each * 20)) -gt $((before * 21)) ]; then failed=1; fi
done
if [ "${1:-}" = --keep ]; then
  cp "$fresh" "$kept"
elif [ "$failed" = 1 ]; then
  echo "more than was kept: look for the reason, or keep it by --keep and say why" >&2
  exit 1
fi
