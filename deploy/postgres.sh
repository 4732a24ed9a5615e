#!/usr/bin/env bash
# A throwaway Postgres for the demo and the tests.
#
#   deploy/postgres.sh install            makes sure that a server is installed
#   deploy/postgres.sh run -- COMMAND …   starts one of its own on a free port, runs the command with
#                                         DATABASE_URL, PG* and PG_BIN set, stops and removes it
#
# A Postgres that runs already is never touched. PG_OPTIONS='-c name=value' adds server settings.
set -euo pipefail

find_bin() {
  local directory
  # the newest of Debian's, then whatever pg_config knows
  directory=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
  if [ -z "$directory" ] && command -v pg_config >/dev/null; then directory=$(pg_config --bindir); fi
  if [ -z "$directory" ] && command -v brew >/dev/null; then
    directory=$(brew --prefix 2>/dev/null)/opt/postgresql@17/bin
  fi
  if [ -x "$directory/initdb" ]; then echo "$directory"; fi
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install() {
  [ -n "$(find_bin)" ] && return
  if command -v apt-get >/dev/null; then
    echo "installing PostgreSQL by apt" >&2
    as_root apt-get update -qq >&2
    # the server's programs, without a cluster that starts by itself
    as_root mkdir -p /etc/postgresql-common
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
      echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >&2
  elif command -v brew >/dev/null; then
    echo "installing PostgreSQL by brew" >&2
    brew install postgresql@17 >&2
  fi
  if [ -z "$(find_bin)" ]; then
    echo "deploy/postgres.sh: no PostgreSQL server found; install version 14 or newer, so that initdb and pg_ctl are in the directory that pg_config --bindir tells" >&2
    exit 1
  fi
}

# servers refuse to run as root
as_server() {
  if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

run() {
  install
  PG_BIN=$(find_bin)
  directory=$(mktemp -d "${TMPDIR:-/tmp}/crm-relay-pg.XXXXXX")
  if [ "$(id -u)" = 0 ]; then chown postgres "$directory"; fi
  chmod 755 "$directory"
  child=
  # shellcheck disable=SC2317 # the traps call it
  stop() {
    trap - EXIT INT TERM HUP
    # how it ends does not matter here: what follows must be done
    if [ -n "$child" ]; then
      kill -TERM "$child" 2>/dev/null || true
      wait "$child" 2>/dev/null || true
    fi
    as_server "$PG_BIN/pg_ctl" -D "$directory/data" -m immediate -w stop >/dev/null 2>&1 || true
    rm -rf "$directory"
  }
  trap 'stop' EXIT
  trap 'stop; exit 130' INT
  trap 'stop; exit 143' TERM HUP
  as_server "$PG_BIN/initdb" -D "$directory/data" -A trust -U postgres -E UTF8 --locale=C >/dev/null
  # the data is thrown away with the directory, so there is nothing to lose
  printf 'fsync = off\nfull_page_writes = off\n' | as_server tee -a "$directory/data/postgresql.conf" >/dev/null
  port=
  for _ in 1 2 3 4 5 6 7 8; do
    candidate=$((20000 + RANDOM % 12000))
    if as_server "$PG_BIN/pg_ctl" -D "$directory/data" -l "$directory/data/log" -w start \
      -o "-p $candidate -c listen_addresses=127.0.0.1 -c unix_socket_directories=$directory -c max_connections=200 ${PG_OPTIONS:-}" >/dev/null 2>&1; then
      port=$candidate
      break
    fi
  done
  if [ -z "$port" ]; then
    echo "deploy/postgres.sh: the server did not start; its log says:" >&2
    tail -n 20 "$directory/data/log" >&2 || true
    exit 1
  fi
  export PG_BIN PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
  export DATABASE_URL="postgresql://postgres@127.0.0.1:$port/postgres"
  "$@" &
  child=$!
  status=0
  wait "$child" || status=$?
  child=
  exit "$status"
}

case "${1:-}" in
  install) install ;;
  run)
    shift
    if [ "${1:-}" = -- ]; then shift; fi
    run "$@"
    ;;
  *)
    echo "usage: deploy/postgres.sh install | run -- COMMAND …" >&2
    exit 2
    ;;
esac
