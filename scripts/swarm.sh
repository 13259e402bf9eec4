# Sourced after env.sh: the processes of a local swarm.
# shellcheck shell=bash

# pids_of DIR: every process that works in DIR or below, names it on its command
# line, or descends from one that does. A node's formd, shims and QEMU, and
# nothing else of this machine.
pids_of() {
	local dir=$1 pid cwd cmd stat ppid args
	declare -A parent=() mine=()
	for proc in /proc/[0-9]*; do
		pid=${proc#/proc/}
		[ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
		{ read -r stat <"$proc/stat"; } 2>/dev/null || continue
		# "pid (name) state ppid": the name may hold anything, so cut behind it.
		read -r _ ppid _ <<<"${stat##*) }"
		parent[$pid]=$ppid
		cwd=$(readlink "$proc/cwd" 2>/dev/null) || true
		{ mapfile -d '' args <"$proc/cmdline"; } 2>/dev/null || continue
		cmd="${args[*]} "
		case "$cwd/" in "$dir"/*) mine[$pid]=1 ;; esac
		case "$cmd" in *"$dir"/* | *"$dir "*) mine[$pid]=1 ;; esac
	done
	local more=1
	while [ "$more" = 1 ]; do
		more=0
		for pid in "${!parent[@]}"; do
			if [ -z "${mine[$pid]:-}" ] && [ -n "${mine[${parent[$pid]}]:-}" ]; then
				mine[$pid]=1
				more=1
			fi
		done
	done
	# The shell that asks, and make above it, are never meant.
	unset "mine[$$]" "mine[$PPID]"
	[ ${#mine[@]} -eq 0 ] || printf '%s\n' "${!mine[@]}"
}

# end SECONDS SIGNAL PID...: signal them and wait until they are gone.
end() {
	local limit=$1 signal=$2
	shift 2
	[ $# -gt 0 ] || return 0
	kill "-$signal" "$@" 2>/dev/null || true
	poll "$limit" gone "$@"
}
gone() {
	local pid
	for pid in "$@"; do
		# A zombie is gone: its parent has only not asked yet.
		if [ -d "/proc/$pid" ] && ! grep -q '^State:.*Z' "/proc/$pid/status" 2>/dev/null; then
			return 1
		fi
	done
}

# kill_node N: what a power cut does to a node.
kill_node() {
	local pids
	mapfile -t pids < <(pids_of "$DEMO/node$1")
	[ ${#pids[@]} -gt 0 ] || die "node $1 has no process to kill"
	end 10 KILL "${pids[@]}" || die "node $1 survived kill -9: ${pids[*]}"
}
