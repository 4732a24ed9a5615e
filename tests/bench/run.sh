#!/usr/bin/env bash
# Measures the relay beside what would be used instead: ./tests/bench/run.sh [--quick] [part…]
# Installs what it compares with, builds, starts a Postgres of its own; the table is printed, the figures
# and plots are in tests/bench (of --quick in target/bench).
set -euo pipefail
cd "$(dirname "$0")/../.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# servers are only unpacked: one that is installed is also started, now and with the machine
unpack() {
  if [ -x "/$2" ] || [ -e "/$2" ] || [ -e "target/servers/$2" ]; then return; fi
  echo "unpacking $1" >&2
  mkdir -p target/servers
  (
    cd target/servers || exit 1
    apt-get download -qq "$1" 2>/dev/null || { as_root apt-get update -qq && apt-get download -qq "$1"; } || exit 1
    dpkg-deb -x "$1"_*.deb . && rm "$1"_*.deb
  )
}

for tool in cargo npm node taskset; do
  command -v "$tool" >/dev/null || { echo "tests/bench/run.sh: please install $tool (tests/run.sh installs what apt has)" >&2; exit 1; }
done
deploy/postgres.sh install
if command -v apt-get >/dev/null; then
  unpack nginx usr/sbin/nginx
  unpack libnginx-mod-nchan usr/lib/nginx/modules/ngx_nchan_module.so
  unpack nats-server usr/sbin/nats-server
  # nchan makes a directory in there, wherever it is told to make it
  [ -d /var/lib/nginx ] || as_root mkdir -p /var/lib/nginx
fi
if [ ! -d tests/bench/peers/node_modules ] || [ tests/bench/peers/package-lock.json -nt tests/bench/peers/node_modules ]; then
  (cd tests/bench/peers && npm ci --no-audit --no-fund --silent && touch node_modules)
fi
cargo build --release --locked
mkdir -p target/bench
CARGO_TARGET_DIR=target/bench cargo build --release --locked --manifest-path tests/bench/Cargo.toml

# ten thousand sockets on either side
ulimit -n "$(ulimit -Hn)"
PG_OPTIONS="-c max_connections=300 -c shared_preload_libraries=pg_stat_statements ${PG_OPTIONS:-}" \
  exec deploy/postgres.sh run -- target/bench/release/bench "$@"
