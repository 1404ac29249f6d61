#!/bin/bash
# Runs all tests: those of containers, which share an engine, as one run; beside it all others as two, a file at a time.
# Most of them wait more than they work. Arguments are pytest's.
set -u
cd "$(dirname "$0")/.."
log=$(mktemp)
pytest -p no:cacheprovider -m containers "$@" >"$log" 2>&1 &
containers=$!
trap 'kill "$containers" 2>/dev/null; rm -f "$log"' EXIT
pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not containers" "$@"
status=$?
wait "$containers" || status=$?
echo "Meanwhile: containers"
cat "$log"
exit "$status"
