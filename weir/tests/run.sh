#!/usr/bin/env bash
# Runs the tests and ends with what ran, what was skipped and why. With CI=true a skip is a failure.
# Failpoints are built in: some tests ask what a bug of ours would do.
# A test that cannot run here prints a line "SKIP: name: why" and passes.
#
# All tests run on the engine that `auto` chooses here; what moves bytes runs again on every other
# engine of the build. WEIR_ENGINE=NAME runs all on that one alone.
set -uo pipefail
cd "$(dirname "$0")/../.."
PATH="$PATH:/usr/sbin:/sbin"

scope=("$@")
[ ${#scope[@]} -gt 0 ] || scope=(--workspace --)
# Of the arguments: the profile, and what is for the test programs.
profile=() flags=(--) weir=${CARGO_TARGET_DIR:-target}/debug/weir
for word in "${scope[@]}"; do
  case $word in
    --release) profile=(--release) weir=${CARGO_TARGET_DIR:-target}/release/weir ;;
    --include-ignored | --ignored) flags+=("$word") ;;
  esac
done
# The test programs of weir and lb-core that move bytes.
path=()
for name in tcp udp streams wire floods memory resources churn swap affinity lifecycle \
  adversary listeners drain steering over_limit exhaustion exhaustion_udp; do
  path+=(--test "$name")
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
begun=$SECONDS

# run NAME ARGS...: cargo test with what is common. Shows a line per test and per program, not their
# output.
run() {
  local name=$1 from pid
  shift
  echo "== $name" | tee -a "$log"
  from=$(($(wc -l <"$log") + 1))
  cargo test --locked --no-fail-fast --features weir/failpoints "$@" --show-output >>"$log" 2>&1 &
  pid=$!
  tail -n "+$from" -f --pid=$pid "$log" | grep --line-buffered -E '^(test .* \.\.\. |     Running |   Doc-tests |error|warning: unused)' || true
  wait $pid || status=1
}

run "all tests, engine ${WEIR_ENGINE:-auto}" "${scope[@]}"

lacking=()
if [ -z "${WEIR_ENGINE:-}" ] && [[ " ${scope[*]} " == *" --workspace "* ]]; then
  # As the tests have just built it.
  version=$("$weir" version -o json)
  auto=$(sed -nE 's/.*"engine":\{"name":"([a-z_]+)".*/\1/p' <<<"$version")
  [ -n "$auto" ] || { echo "weir version names no engine: $version" >&2; status=1; }
  # An engine a line, with all that is said about it.
  while read -r engine; do
    name=$(sed -nE 's/.*"name":"([a-z_]+)".*/\1/p' <<<"$engine")
    if [ -z "$name" ] || [ "$name" = "$auto" ]; then
      continue
    elif [[ $engine == *'"available":true'* ]]; then
      WEIR_ENGINE=$name run "what moves bytes, engine $name" "${profile[@]}" -p weir -p lb-core "${path[@]}" "${flags[@]}"
    else
      lacking+=("engine $name: $(sed -nE 's/.*"why":"([^"]*)".*/\1/p' <<<"$engine")")
    fi
  done < <(sed -nE 's/.*"engines":\[([^]]*)\].*/\1/p' <<<"$version" | tr '{' '\n')
fi

sum() { grep -E '^test result:' "$log" | grep -oE "[0-9]+ $1" | awk '{n += $1} END {print n + 0}'; }
passed=$(sum passed) failed=$(sum failed) ignored=$(sum ignored)
skips=$(grep -oE '^SKIP: .*' "$log" | sed 's/^SKIP: //' | sort -u)
skipped=$(grep -cE '^SKIP: ' "$log" || true)
[ ${#lacking[@]} -eq 0 ] || skips=$(printf '%s\n' "$skips" "${lacking[@]}" | grep .)

if [ "$status" != 0 ]; then
  echo; echo "== output of what failed"
  awk '/^failures:$/ {on = 1} /^test result:/ {on = 0} on' "$log"
  grep -E '^error' -A 12 "$log" | head -n 80
fi
echo
echo "== ran"
grep -E '^(== |     Running|   Doc-tests|test result:)' "$log" |
  sed -E 's/ \(target[^)]*\)//; s/; [0-9]+ measured; [0-9]+ filtered out//' 
echo
slow=$(grep -oE '^test .* has been running for over 60 seconds' "$log" | sed -E 's/^test (.*) has been.*/  \1/')
if [ -n "$slow" ]; then
  echo "== took over 60 seconds"; printf '%s\n' "$slow"; echo
fi
if [ -n "$skips" ]; then
  echo "== skipped here, and why"; printf '%s\n' "$skips" | sed 's/^/  /'
else
  echo "== skipped: nothing"
fi
[ "$ignored" -gt 0 ] && echo "== kept for make soak: $ignored long forms"
echo
echo "$((passed - skipped)) passed, $failed failed, $((skipped + ${#lacking[@]})) skipped in $((SECONDS - begun)) s"
if [ "$status" = 0 ] && [ -n "$skips" ] && [ "${CI:-}" = true ]; then
  echo "CI=true: a skip is a failure" >&2
  exit 1
fi
exit "$status"
