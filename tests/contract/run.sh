#!/usr/bin/env bash
# Whether relay/asyncapi.yaml is an AsyncAPI document, by AsyncAPI's own parser.
set -euo pipefail
cd "$(dirname "$0")"
npm ci --silent --no-audit --no-fund
node --test
