#!/usr/bin/env bash
# Holds the files under deploy/ against the programs that read them, as far as those can be had by apt and
# pip. (nginx and Caddy are run with theirs in tests/relay/reverse_proxy.rs.)
set -euo pipefail
cd "$(dirname "$0")/../.."

failed=0
# prints what it is about, and what was said if it went wrong
check() {
  local what=$1 said
  shift
  if said=$("$@" 2>&1); then
    echo "ok    $what"
  else
    failed=$((failed + 1))
    printf 'FAIL  %s\n%s\n' "$what" "$said"
  fi
}
# passes where the command fails
fails() { ! "$@"; }

python=$(tests/python.sh)

if command -v systemd-analyze >/dev/null; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  # a binary that is there
  sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' deploy/crm-relay.service >"$place/crm-relay.service"
  check "systemd takes the unit" systemd-analyze verify "$place/crm-relay.service"
  check "its exposure is 2.0 or less" systemd-analyze security --offline=true --threshold=20 "$place/crm-relay.service"
  sed '/^SystemCall\|^Restrict\|^Protect/d' "$place/crm-relay.service" >"$place/open.service"
  check "(and would not be without its restrictions)" \
    fails systemd-analyze security --offline=true --threshold=20 "$place/open.service"
else
  echo "      not run: systemd-analyze, which is for Linux with systemd"
fi

check "hadolint has nothing against the Containerfile" "$python/hadolint" deploy/Containerfile
# the sleep of preStop is of 1.30
check "Kubernetes 1.30 knows every field" "$python/kubernetes-validate" --strict -k 1.30 deploy/kubernetes/[!k]*.yaml
check "Containerfile, compose.yaml and kustomization.yaml are whole" "$python/python" tests/deploy/whole.py

echo "      not run: docker build, docker compose up, kubectl apply: their images cannot be fetched everywhere"
[ "$failed" = 0 ]
