#!/usr/bin/env bash
# Checks the dependencies: licences, duplicates and sources always, advisories where their database can be had.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo deny --version >/dev/null 2>&1; then
    echo "deny: cargo-deny is missing; it is built and installed for this user now" >&2
    if ! cargo install --locked --quiet cargo-deny; then
        echo "deny: NOT CHECKED: cargo-deny can neither be found nor installed" >&2
        # In the continuous checks what is not checked has not passed.
        [[ "${CI:-}" == true ]] && exit 1
        exit 0
    fi
fi

cargo deny --all-features check licenses bans sources

if cargo deny fetch db >/dev/null 2>&1; then
    cargo deny --all-features check --disable-fetch advisories
else
    echo "deny: ADVISORIES NOT CHECKED: the advisory database cannot be reached from here" >&2
fi
