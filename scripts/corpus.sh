#!/usr/bin/env bash
# Keeps some of the inputs that runs of a fuzz target found, short and long, of at
# most 4 KiB, as its corpus.
#
#   scripts/corpus.sh DIR TARGET N
. "$(dirname "$0")/env.sh"
dir=${1#./} target=$2 n=$3
found=$(go env GOCACHE)/fuzz/$(go list -m)/$dir/$target
[ -d "$found" ] || exit 0
mkdir -p "$dir/testdata/fuzz/$target"
mapfile -t files < <(find "$found" -type f -size -4096c -printf '%s %p\n' | sort -n | cut -d' ' -f2-)
for ((i = 0; i < n && i < ${#files[@]}; i++)); do
	at=$((${#files[@]} > n ? i * (${#files[@]} - 1) / (n > 1 ? n - 1 : 1) : i))
	cp -n "${files[at]}" "$dir/testdata/fuzz/$target/"
done
