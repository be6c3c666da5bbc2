#!/usr/bin/env bash
# Formatting, lints as errors, and the rules that no lint knows.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all -- --check
cargo clippy --workspace --all-targets -- -D warnings

# A task has an owner: a JoinSet, a TaskTracker, or a handle that ends it when it is dropped.
if git grep -nE '\btokio::(task::)?spawn\(' -- '*.rs' | grep -v 'AbortOnDropHandle::new(tokio::task::spawn('; then
    echo "lint: these tasks have no owner" >&2
    exit 1
fi
