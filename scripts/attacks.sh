#!/usr/bin/env bash
# Runs the attack suite, says how many rows of docs/threats.md were tried and held, and writes docs/attacks.md.
#   SCALE=100 attacks.sh     tries a hundred times as many inputs         attacks.sh dat_14     tries what has that name
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp) skipped=$(mktemp)
trap 'rm -f "$log" "$skipped"' EXIT

status=0
TUNNEL_E2E_SKIPPED=$skipped TUNNEL_ATTACKS_SCALE=${SCALE:-1} \
    cargo test -p tunnel-e2e --test attacks -- --skip the_table_is_current "$@" 2>&1 | tee "$log" || status=$?
if ((status == 0)); then
    TUNNEL_UPDATE_ATTACKS=1 cargo test --quiet -p tunnel-e2e --test attacks -- the_table_is_current >/dev/null
fi

echo
sort -u "$skipped"
awk '
    # test binds::dat_01_what_it_is ... ok
    /^test [a-z]+::[a-z]+_[0-9]+_/ && / \.\.\. / {
        split($2, path, "::"); split(path[2], word, "_"); row = toupper(word[1]) "-" word[2]
        tried[row] = 1
        if ($NF != "ok") { failed[row] = 1; print "not held: " row " (" $2 ")" }
    }
    END {
        for (row in tried) { rows++; if (!(row in failed)) held++ }
        printf "rows tried: %d, held: %d\n", rows, held
    }' "$log"
grep -o '[0-9]* not applicable' docs/attacks.md
exit "$status"
