#!/usr/bin/env bash
# The simulator: every scenario once, or SCENARIO=NAME; SEED=N to see a run again.
# Ends at the first scenario that breaks something, with the line that replays it.
# With SEEDS=N it runs seeds 0 to N-1 of each to the end, as many at once as there are
# cores, and prints a table: scenario, seeds, failures, seconds of processor time.
. "$(dirname "$0")/env.sh"

mkdir -p bin
CGO_ENABLED=0 go build -o bin/ ./cmd/form
names=${SCENARIO:-$(bin/form sim list | cut -d' ' -f1)}
if [[ -z ${SEEDS:-} ]]; then
	for name in $names; do
		say "sim: $name"
		bin/form sim run "$name" ${SEED:+--seed "$SEED"}
	done
	exit
fi

# one runs a seed, and prints its scenario, 0 or 1, and its time.
one() {
	local TIMEFORMAT=%U out bad=0 took
	out=$(mktemp)
	took=$( { time bin/form sim run "$1" --seed "$2" --once --no-shrink >"$out" 2>&1; } 2>&1) || bad=1
	[[ $bad == 0 ]] || { echo "$1 seed $2"; cat "$out"; } >&2
	rm -f "$out"
	echo "$1 $bad ${took##*$'\n'}"
}
export -f one
for name in $names; do
	seq 0 $((SEEDS - 1)) | sed "s/^/$name /"
done | xargs -P "$(nproc)" -L 1 bash -c 'one "$0" "$1"' | awk '
	{ n[$1]++; bad[$1] += $2; t[$1] += $3; all += $2 }
	END {
		for (s in n) printf "%-24s %5d seeds %4d failed %8.1f s\n", s, n[s], bad[s], t[s] | "sort"
		close("sort")
		exit all > 0
	}'
