#!/bin/bash
# Runs all tests as three runs side by side, for most of them wait more than they work. Arguments are pytest's.
set -u
cd "$(dirname "$0")/.."
beside=("containers" "not containers and not integration")
logs=$(mktemp -d)
runs=()
for index in "${!beside[@]}"; do
    pytest -p no:cacheprovider -m "${beside[index]}" "$@" >"$logs/$index" 2>&1 &
    runs+=($!)
done
trap 'kill "${runs[@]}" 2>/dev/null; rm -rf "$logs"' EXIT
pytest -m "integration and not containers" "$@"
status=$?
for index in "${!beside[@]}"; do
    wait "${runs[index]}" || status=$?
    echo "Meanwhile: ${beside[index]}"
    cat "$logs/$index"
done
exit "$status"
