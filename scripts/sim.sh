#!/usr/bin/env bash
# The simulator is designed (docs) and not built. Saying so and failing is
# honest: nothing must take silence for a passed simulation.
. "$(dirname "$0")/env.sh"
if [ ! -d sim ]; then
	die "there is no simulator yet" "the pure core it will run is tested by: go test -race ./crdt/... ./fogvm/reconcile/plan"
fi
exec bin/form sim run "${SCENARIO:-sim/scenarios/basic.yaml}" ${SEED:+--seed "$SEED"}
