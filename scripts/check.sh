#!/usr/bin/env bash
# The quick half of the tests: what is wrong without running a swarm.
#
#   scripts/check.sh           all of it, ending in the count
#   EVENTS=DIR …               events go to DIR, and the caller counts
. "$(dirname "$0")/env.sh"

command -v go >/dev/null || scripts/setup.sh
events=${EVENTS:-$CACHE/check}
mkdir -p "$events"
[ -n "${EVENTS:-}" ] || rm -f "$events"/*.json
count=$CACHE/bin/testcount
go build -o "$count" ./scripts/testcount

# staticcheck must be built by the Go that go.mod names, or it cannot read its
# export data.
goversion=$(go env GOVERSION)
staticcheck=$CACHE/bin/staticcheck-0.8.2-$goversion
if [ ! -x "$staticcheck" ]; then
	say "check: building staticcheck (once)"
	GOTOOLCHAIN=$goversion GOFLAGS= GOBIN=$CACHE/bin go install honnef.co/go/tools/cmd/staticcheck@v0.8.2
	mv "$CACHE/bin/staticcheck" "$staticcheck"
fi

unformatted() {
	local files
	files=$(find . -path './.?*' -prune -o -name node_modules -prune -o -name '*.go' -print | xargs gofmt -l)
	[ -z "$files" ] || {
		echo "gofmt -w these:"
		echo "$files"
		return 1
	}
}
export -f unformatted

failed=0
step() { "$count" step "$events/steps.json" "$@" || failed=1; }
step gofmt bash -euo pipefail -c unformatted
step tidy go mod tidy -diff
step vet go vet -tags e2e ./...
step staticcheck "$staticcheck" -tags e2e ./...
# Virtual hours, a thousand nodes and decisions run in one goroutine, where -race finds
# nothing, and slowly under it. Real hosts in virtual time take ten times as long.
single='/(sim|sim/(chance|des|gossip|live|regions|scenario)|fogvm/reconcile/plan)$'
mapfile -t packages < <(go list ./... | grep -Ev "$single")
mapfile -t pure < <(go list ./... | grep -E "$single")
"$count" go "$events/unit.json" -race -timeout 20m "${packages[@]}" || failed=1
"$count" go "$events/sim.json" -timeout 20m "${pure[@]}" || failed=1
# A few of them for a minute show races of what is around them.
"$count" go "$events/hosts.json" -race -timeout 5m -run '^TestPlayFinds$' ./sim/live || failed=1
# As long take twenty transfers of 256 MiB, of which -race sees shorter ones.
[ -z "${FORMATION_SLOW:-}" ] ||
	"$count" go "$events/transfers.json" -timeout 20m -run '^TestTransfersAreComplete$' ./p2p/exchange || failed=1

[ -n "${EVENTS:-}" ] || "$count" sum "$events"/*.json || failed=1
exit $failed
