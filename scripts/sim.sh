#!/usr/bin/env bash
# The simulator: every scenario once, or SCENARIO=NAME; SEED=N to see a run again.
# Ends at the first scenario that breaks something, with the line that replays it.
. "$(dirname "$0")/env.sh"

mkdir -p bin
CGO_ENABLED=0 go build -o bin/ ./cmd/form
for name in ${SCENARIO:-$(bin/form sim list | cut -d' ' -f1)}; do
	say "sim: $name"
	bin/form sim run "$name" ${SEED:+--seed "$SEED"}
done
