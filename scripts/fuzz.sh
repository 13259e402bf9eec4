#!/usr/bin/env bash
# Runs each fuzz target for FUZZTIME (30s). New inputs that fail are kept by go
# under the package's testdata/fuzz: commit them with the fix. KEEP=N keeps N of
# the other inputs that it found there, too.
. "$(dirname "$0")/env.sh"
failed=0
found=0
while IFS=: read -r file func; do
	found=1
	dir=$(dirname "$file")
	say "fuzz: $dir $func"
	# Making inputs shorter would take most of the time: a minute for one.
	go test -run '^$' -fuzz "^$func\$" -fuzztime "${FUZZTIME:-30s}" -fuzzminimizetime 2s "$dir" || failed=1
	[ -z "${KEEP:-}" ] || scripts/corpus.sh "$dir" "$func" "$KEEP"
done < <(grep -roHE --include='*_test.go' --exclude-dir='.?*' '^func Fuzz[A-Za-z0-9_]+' . | sed 's/:func /:/' | sort)
[ "$found" = 1 ] || die "no fuzz target found"
exit $failed
