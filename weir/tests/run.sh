#!/usr/bin/env bash
# Runs the tests and ends with what ran, what was skipped and why. With CI=true a skip is a failure.
# Failpoints are built in: some tests ask what a bug of ours would do.
# A test that cannot run here prints a line "SKIP: name: why" and passes.
set -uo pipefail
cd "$(dirname "$0")/../.."
PATH="$PATH:/usr/sbin:/sbin"

scope=("$@")
[ ${#scope[@]} -gt 0 ] || scope=(--workspace --)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

cargo test --locked --no-fail-fast --features weir/failpoints "${scope[@]}" --show-output >"$log" 2>&1 &
pid=$!
# Progress while it runs: a line per test and per binary, not their output.
tail -n +1 -f --pid=$pid "$log" | grep --line-buffered -E '^(test .* \.\.\. |     Running |   Doc-tests |error|warning: unused)' || true
wait $pid
status=$?

sum() { grep -E '^test result:' "$log" | grep -oE "[0-9]+ $1" | awk '{n += $1} END {print n + 0}'; }
passed=$(sum passed) failed=$(sum failed) ignored=$(sum ignored)
skips=$(grep -oE '^SKIP: .*' "$log" | sort -u)
skipped=$(printf '%s' "$skips" | grep -c . || true)

if [ "$status" != 0 ]; then
  echo; echo "== output of what failed"
  awk '/^failures:$/ {on = 1} /^test result:/ {on = 0} on' "$log"
  grep -E '^error' -A 12 "$log" | head -n 80
fi
echo
echo "== ran"
grep -E '^(     Running|   Doc-tests|test result:)' "$log" |
  sed -E 's/ \(target[^)]*\)//; s/; [0-9]+ measured; [0-9]+ filtered out//' 
echo
if [ "$skipped" -gt 0 ]; then
  echo "== skipped here, and why"; printf '%s\n' "$skips" | sed 's/^SKIP: /  /'
else
  echo "== skipped: nothing"
fi
[ "$ignored" -gt 0 ] && echo "== kept for make soak: $ignored long forms"
echo
echo "$((passed - skipped)) passed, $failed failed, $skipped skipped"
if [ "$status" = 0 ] && [ "$skipped" -gt 0 ] && [ "${CI:-}" = true ]; then
  echo "CI=true: a skip is a failure" >&2
  exit 1
fi
exit "$status"
