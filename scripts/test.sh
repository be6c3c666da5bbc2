#!/usr/bin/env bash
# Runs all tests of the workspace and counts those that this machine cannot run. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp) skipped=$(mktemp)
trap 'rm -f "$log" "$skipped"' EXIT

# The end-to-end tests start the programs. Cargo builds them here for their own packages' tests, before the first test
# of any package runs, so that they need not be built once more.
status=0
TUNNEL_E2E_BUILT=1 TUNNEL_E2E_SKIPPED=$skipped \
    cargo test --workspace --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?

echo
sort -u "$skipped"
awk -v skipped="$(sort -u "$skipped" | wc -l)" '
    /^test result:/ { passed += $4; failed += $6; ignored += $8 }
    END { printf "tests: %d passed, %d failed, %d skipped for want of something on this machine, %d ignored\n",
          passed - skipped, failed, skipped, ignored }' "$log"
exit "$status"
