#!/usr/bin/env bash
# What writers wait while a full slot of the journal's ring is truncated: eight of them update leads
# for ten seconds, by turns with and without crm_relay.prune() in the middle.
#
#   tests/prune.sh [--rounds N] [--rows N]      five rounds of two million rows unless told otherwise
set -euo pipefail
cd "$(dirname "$0")/.."
# fsync on: files are removed as they are in production
if [ -z "${PG_BIN:-}" ]; then
  export PG_OPTIONS='-c fsync=on -c full_page_writes=on -c shared_buffers=1GB -c max_wal_size=8GB -c autovacuum=off'
  exec deploy/postgres.sh run -- "$0" "$@"
fi
rounds=5
rows=2000000
while [ $# -gt 0 ]; do
  case "$1" in
    --rounds) rounds=$2 ;;
    --rows) rows=$2 ;;
    *)
      echo "usage: tests/prune.sh [--rounds N] [--rows N]" >&2
      exit 2
      ;;
  esac
  shift 2
done

sql() { psql -qAtX -v ON_ERROR_STOP=1 "$@"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sql -f deploy/crm.sql
sql -f sql/install.sql 2>/dev/null
sql -c "insert into leads (id, notes) select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, '' from generate_series(0, 999) n"
cat >"$work/write.sql" <<'SQL'
\set n random(0, 999)
update leads set notes = :n || ' ' || clock_timestamp(), version = version + 1 where id = ('00000000-0000-4000-8000-' || lpad(:n::text, 12, '0'))::uuid;
SQL

# a slot that is long over, as full as a busy day makes it
fill() {
  sql -v rows="$rows" <<'SQL'
insert into crm_relay.change (slot, changed_at, module, action, record_id, db_user, db_role, application, old_image, new_image)
select crm_relay.slot(now() - interval '8 days', s.retention), now() - interval '8 days', 'leads', 'updated',
       gen_random_uuid()::text, 'crm', 'crm', 'crm', image, image
  from crm_relay.setting s, (select row_to_json(l) as image from leads l limit 1) i, generate_series(1, :rows);
checkpoint;
SQL
}

# one line: median, 99th of a hundred and longest wait in ms, transactions
waits() {
  sort -n "$work"/wait.* | awk '{ wait[NR] = $1 }
    END { printf "%.2f %.2f %.1f %d\n", wait[int((NR + 1) / 2)] / 1000, wait[int(NR * 0.99)] / 1000, wait[NR] / 1000, NR }'
  rm "$work"/wait.*
}

write() {
  (cd "$work" && "$PG_BIN/pgbench" -n -c 8 -j 2 -T 10 -f write.sql -l --log-prefix=log >/dev/null)
  for log in "$work"/log.*; do cut -d ' ' -f 3 "$log" >"${log/log/wait}"; done
  rm "$work"/log.*
}

echo "round           p50 ms  p99 ms  longest ms  transactions"
for round in $(seq "$rounds"); do
  fill
  [ "$round" != 1 ] || sql -c "select 'a slot of ' || pg_size_pretty(max(pg_total_relation_size(format('crm_relay.change_%s', slot)))) from generate_series(0, 9) slot"
  write
  printf '%s without %s\n' "$round" "$(waits)" | tee -a "$work/figures"
  write &
  writers=$!
  sleep 5
  took=$(sql -c '\timing on' -c 'select crm_relay.prune()')
  wait "$writers"
  printf '%s with    %s  %s\n' "$round" "$(waits)" "${took//$'\n'/ }" | tee -a "$work/figures"
done
echo "medians of $rounds rounds, and the longest of all:"
for kind in without with; do
  median() { grep " $kind " "$work/figures" | awk -v column="$1" '{ print $column }' | sort -n | sed -n "$(((rounds + 1) / 2))p"; }
  longest=$(grep " $kind " "$work/figures" | awk '{ print $5 }' | sort -n | tail -n 1)
  echo "| $kind | $(median 3) ms | $(median 4) ms | $(median 5) ms | $longest ms |"
done
