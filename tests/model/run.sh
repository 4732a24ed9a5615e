#!/usr/bin/env bash
# Tries every interleaving of the model of the doorbell, and sees that it fails without any of its rules.
#   tests/model/run.sh [-DTRANSACTIONS=2]     more of them, by hand: some gigabytes and minutes
set -euo pipefail
cd "$(dirname "$0")"
directory=$(mktemp -d "${TMPDIR:-/tmp}/crm-relay-model.XXXXXX")
trap 'rm -rf "$directory"' EXIT

# search NAME [-D…]: tries everything; what was found is in NAME.txt
search() {
  local name=$1
  shift
  mkdir "$directory/$name"
  (
    model=$PWD/doorbell.pml
    cd "$directory/$name"
    spin "$@" -a "$model" >/dev/null
    gcc -w -O2 -DSAFETY -o search pan.c
    ./search -m1000000 >"../$name.txt"
  )
  if ! grep -q 'states, stored' "$directory/$name.txt" || grep -q 'max search depth too small\|out of memory' "$directory/$name.txt"; then
    echo "tests/model/run.sh: the search for $name did not come to its end" >&2
    exit 1
  fi
  sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$directory/$name.txt"
}
errors() { sed -n 's/.*errors: //p' "$directory/$1.txt"; }

states=$(search whole "$@")
if [ "$(errors whole)" != 0 ]; then
  echo "a change is slept through; to see how: spin -a doorbell.pml, build and run pan.c, spin -t -p doorbell.pml" >&2
  exit 1
fi
echo "the doorbell: $states states, no change slept through"
grep -o 'BREAK_[A-Z_]\+' doorbell.pml | sort -u | while read -r rule; do
  search "$rule" "-D$rule" >/dev/null
  if [ "$(errors "$rule")" = 0 ]; then
    echo "nothing fails with $rule: that rule is not needed, or the model does not see it" >&2
    exit 1
  fi
  echo "with $rule a change is slept through"
done
