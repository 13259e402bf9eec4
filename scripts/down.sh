#!/usr/bin/env bash
# Ends the local swarm of scripts/up.sh by its process numbers, and leaves
# nothing: no process, no mount, no file.
. "$(dirname "$0")/env.sh"
. scripts/swarm.sh
[ -d "$DEMO" ] || exit 0

declare -A formds=()
if [ -f "$DEMO/pids" ]; then
	while read -r pid; do
		# The number may be another's by now: it must still be a formd of ours.
		if { mapfile -d '' args <"/proc/$pid/cmdline"; } 2>/dev/null && [[ "${args[*]}" == *"$DEMO/"* ]]; then
			formds[$pid]=1
		fi
	done <"$DEMO/pids"
fi
end 15 TERM "${!formds[@]}" || say "down: a formd does not end; killing it"

# What is left are shims and their QEMUs: asked first, so that they remove what
# they made (cgroups, sockets), then made to.
mapfile -t left < <(pids_of "$DEMO")
end 30 TERM "${left[@]}" || true
mapfile -t left < <(pids_of "$DEMO")
end 10 KILL "${left[@]}" || true
mapfile -t left < <(pids_of "$DEMO")
[ ${#left[@]} -eq 0 ] || die "still running: ${left[*]}"

while read -r _ at _; do
	case $at in "$DEMO"/*) umount "$at" || die "$at is still mounted" ;; esac
done </proc/mounts
[ ! -f "$DEMO/sockets" ] || rm -rf "$(cat "$DEMO/sockets")"
rm -rf "$DEMO"
