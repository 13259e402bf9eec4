#!/usr/bin/env bash
# Runs each fuzz target for FUZZTIME (30s). New inputs that fail are kept by go
# under the package's testdata/fuzz: commit them with the fix.
. "$(dirname "$0")/env.sh"
failed=0
found=0
while IFS=: read -r file func; do
	found=1
	dir=$(dirname "$file")
	say "fuzz: $dir $func"
	go test -run '^$' -fuzz "^$func\$" -fuzztime "${FUZZTIME:-30s}" "$dir" || failed=1
done < <(grep -roHE --include='*_test.go' --exclude-dir='.?*' '^func Fuzz[A-Za-z0-9_]+' . | sed 's/:func /:/' | sort)
[ "$found" = 1 ] || die "no fuzz target found"
exit $failed
