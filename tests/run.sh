#!/usr/bin/env bash
# Runs all tests, or the parts that are named: format clippy rust sql shell model contract deploy browser chaos.
# Installs what is missing; every part that needs Postgres starts one of its own.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_missing() {
  if ! command -v cargo >/dev/null; then
    echo "tests/run.sh: Rust is missing; install it from https://rustup.rs" >&2
    exit 1
  fi
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt || exit 1
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy || exit 1
  deploy/postgres.sh install || exit 1
  if ! command -v apt-get >/dev/null; then
    for tool in psql pg_prove pgbouncer promtool shellcheck node npm chromium faketime spin python3 nginx caddy; do
      command -v "$tool" >/dev/null || echo "tests/run.sh: please install $tool (and the extensions pgtap and plpgsql_check)" >&2
    done
    return
  fi
  local version missing=()
  version=$(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -V | tail -n 1)
  has() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'install ok'; }
  for package in "postgresql-$version-pgtap" "postgresql-$version-plpgsql-check" \
    libtap-parser-sourcehandler-pgtap-perl pgbouncer procps prometheus shellcheck chromium faketime spin; do
    has "$package" || missing+=("$package")
  done
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  command -v systemd-analyze >/dev/null || missing+=(systemd)
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  command -v node >/dev/null || missing+=(nodejs)
  command -v npm >/dev/null || missing+=(npm)
  if [ "${#missing[@]}" -gt 0 ]; then
    echo "installing ${missing[*]}"
    as_root apt-get update -qq
    # RUNLEVEL=1: what is installed is not started
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || exit 1
  fi
  unpack nginx usr/sbin/nginx
  unpack caddy usr/bin/caddy
}

# a server that is installed is also started, now and with the machine: these are only unpacked
unpack() {
  if [ -x "/$2" ] || [ -x "target/servers/$2" ]; then return; fi
  echo "unpacking $1"
  mkdir -p target/servers
  (
    cd target/servers || exit 1
    apt-get download -qq "$1" 2>/dev/null || { as_root apt-get update -qq && apt-get download -qq "$1"; } || exit 1
    dpkg-deb -x "$1"_*.deb . && rm "$1"_*.deb
  ) || exit 1
}

part_format() { cargo fmt --check; }
part_clippy() { cargo clippy --all-targets --locked -- -D warnings; }
part_rust() { deploy/postgres.sh run -- cargo test --locked; }
part_sql() { deploy/postgres.sh run -- tests/sql/run.sh; }
part_model() { tests/model/run.sh; }
part_contract() { tests/contract/run.sh; }
part_deploy() { tests/deploy/run.sh; }
part_shell() { shellcheck deploy/*.sh tests/*.sh tests/*/*.sh .ci/run; }
# the short form; tests/chaos.sh --minutes 60 is the long one
part_chaos() { tests/chaos.sh; }
part_browser() { cargo build --locked && tests/browser/run.sh; }

if [ $# -gt 0 ]; then parts=("$@"); else parts=(format clippy rust sql shell model contract deploy browser chaos); fi
for part in "${parts[@]}"; do
  if ! declare -F "part_$part" >/dev/null; then
    echo "tests/run.sh: there is no part \"$part\"; parts are format clippy rust sql shell model contract deploy browser chaos" >&2
    exit 2
  fi
done

install_missing
passed=0
failed=0
summary=()
for part in "${parts[@]}"; do
  echo "== $part"
  began=$SECONDS
  if "part_$part" </dev/null; then
    passed=$((passed + 1))
    summary+=("$(printf 'ok    %-8s %4d s' "$part" $((SECONDS - began)))")
  else
    failed=$((failed + 1))
    summary+=("$(printf 'FAIL  %-8s %4d s' "$part" $((SECONDS - began)))")
  fi
done
echo
printf '%s\n' "${summary[@]}"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
