# Sourced by the other scripts: where things are, and how they talk.
# shellcheck shell=bash
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

# The cache outlives `make clean`: packages' base image and tools. Give it to
# several checkouts by FORMATION_CACHE.
CACHE=${FORMATION_CACHE:-$ROOT/.cache}
DEMO=$ROOT/.demo
BASE_CAR=$CACHE/base.car
mkdir -p "$CACHE/bin"

# Administrators' folders are not on everybody's PATH, nor is Go where its own
# installer puts it.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin
for dir in /usr/lib/go-*/bin; do
	[ -d "$dir" ] && PATH=$PATH:$dir
done
export PATH
# A checkout owned by another user must build too, so git is not asked; the
# Makefile passes the version. -trimpath as in the Makefile, or everything would
# be compiled twice.
export GOFLAGS="${GOFLAGS:-} -buildvcs=false -trimpath"

say() { printf '%s\n' "$*" >&2; }
die() {
	say "error: $1"
	shift
	for hint in "$@"; do say "hint: $hint"; done
	exit 1
}

# now prints seconds with two decimals; since START prints the difference.
now() { printf '%s.%02d' "$(printf '%(%s)T' -1)" "$((10#${EPOCHREALTIME#*[.,]} / 10000))"; }
since() { LC_ALL=C awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# poll SECONDS COMMAND...: run the command until it succeeds; false at the deadline.
poll() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < deadline)) || return 1
		# The pause of a poll, not a wait for something to have happened.
		read -rt 0.2 <> <(:) || true
	done
}
