#!/usr/bin/env bash
# Every tier that fits in CI, after its own set-up: make check with the slow
# tests, then the end-to-end tests on real virtual machines. Ends in the plain
# line `N passed, N failed, N skipped`.
#
#   scripts/test.sh            all
#   scripts/test.sh e2e        the end-to-end tests alone
. "$(dirname "$0")/env.sh"
exec </dev/null

only=${1:-}
scripts/setup.sh test
events=$CACHE/test
rm -rf "$events"
mkdir -p "$events"
count=$CACHE/bin/testcount
go build -o "$count" ./scripts/testcount

failed=0
step() { "$count" step "$events/steps.json" "$@" || failed=1; }

step build make -s build
step base scripts/base.sh
if [ -z "$only" ]; then
	# form needs neither cgo nor Linux.
	step form-without-cgo env CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go vet ./cmd/form
	car=store/testdata/car-js
	[ -d $car/node_modules/@ipld/car ] || step npm npm ci --prefix $car --ignore-scripts --no-audit --no-fund
	fixtures=$CACHE/fixtures
	step fixtures scripts/fixtures.sh "$fixtures"
	step resolved scripts/resolved.sh "$CACHE/resolved"
	FORMATION_RESOLVED=$CACHE/resolved FORMATION_SLOW=1 EVENTS=$events FORMATION_VM_BASE=$fixtures/vm \
		FORMATION_STORE=$fixtures/store FORMATION_BASE=$(cat "$CACHE/base.cid") scripts/check.sh || failed=1
	rm -rf "$fixtures"
fi
FORMATION_BIN=$ROOT/bin FORMATION_BASE=$BASE_CAR \
	"$count" go "$events/e2e.json" -tags e2e -run '^TestE2E' -count 1 -race -timeout 25m ./cmd/form/... || failed=1

"$count" sum "$events"/*.json || failed=1
exit $failed
