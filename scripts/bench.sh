#!/usr/bin/env bash
# Prints `bench: NAME VALUE UNIT (target TARGET) ok|short` for each figure that
# BENCH (a regexp) names. Falling short is an answer, not a failure.
. "$(dirname "$0")/env.sh"
scripts/setup.sh
make -s build
scripts/base.sh >&2
go build -o "$CACHE/bin/bench" ./scripts/bench
export FORMATION_BIN=$ROOT/bin FORMATION_BASE=$BASE_CAR
exec "$CACHE/bin/bench" -run "${BENCH:-.}"
