#!/bin/bash
# Runs all tests, those of containers beside the others: both wait more than they work. Arguments are pytest's.
set -u
cd "$(dirname "$0")/.."
log=$(mktemp)
pytest -p no:cacheprovider -m containers "$@" >"$log" 2>&1 &
containers=$!
trap 'kill "$containers" 2>/dev/null; rm -f "$log"' EXIT
pytest -m "not containers" "$@"
status=$?
wait "$containers" || status=$?
echo "The tests of containers, which ran meanwhile:"
cat "$log"
exit "$status"
