#!/usr/bin/env bash
# Makes sure that the Python packages which tests need are there, in target/python, and prints where its
# programs are.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x target/python/bin/python ] || ! cmp -s tests/requirements.txt target/python/requirements.txt; then
  python3 -m venv --clear target/python
  target/python/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt >&2
  cp tests/requirements.txt target/python/
fi
echo "$PWD/target/python/bin"
