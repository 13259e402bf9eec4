#!/usr/bin/env bash
# The whole line on one machine: set-up, a swarm of three, the README's example
# built and shipped, its replicas' answers, one node killed, the replica back.
# Leaves nothing running; KEEP=1 leaves everything.
. "$(dirname "$0")/env.sh"
. scripts/swarm.sh

steps=()
step=start
begin=$(now)
start_of_step=$begin
next() {
	local end
	end=$(since "$start_of_step")
	[ "$step" = start ] || steps+=("$(printf '%8s s  %s' "$end" "$step")")
	step=$1
	start_of_step=$(now)
	[ -z "$1" ] || say "demo: $1"
}

done=0
finish() {
	local code=$?
	if [ "$done" != 1 ]; then
		mkdir -p "$CACHE/failed"
		cp "$DEMO"/*.log "$CACHE/failed/" 2>/dev/null || true
		say "demo: failed at: $step"
		say "demo: logs are in $CACHE/failed"
		[ -n "${KEEP:-}" ] || scripts/down.sh
		exit $((code == 0 ? 1 : code))
	fi
}
trap finish EXIT
trap 'exit 130' INT TERM

next "set-up"
scripts/setup.sh
make -s build
scripts/base.sh >/dev/null

next "start three nodes"
NODES=3 scripts/up.sh
. "$DEMO/env"
. "$DEMO/kit.env"
form=$ROOT/bin/form

next "build docs/examples/hello-server"
# What apt prints is in the log; the steps are shown.
pack=$("$form" pack build docs/examples/hello-server 2> >(tee "$DEMO/build.log" | grep --line-buffered '^\[\|^built\|^error\|^hint' >&2) | tail -n 1)
say "demo: formpack $pack"

next "ship two replicas"
instance=$("$form" pack ship "$pack" --replicas 2 --wait=all --timeout 5m | tail -n 1)
say "demo: instance $instance"

# replicas: one line each, "SLOT NODE PHASE READY_AT", of the JSON that form
# prints one field a line.
replicas() {
	"$form" --json manage inspect "$instance" | awk -F'"' '
		/"replicas": \[/ { inside = 1 }
		!inside { next }
		/^ *"node":/ { node = $4 }
		/^ *"slot":/ { slot = $3; gsub(/[^0-9]/, "", slot) }
		/^ *"phase":/ { phase = $4 }
		/^ *"ready_at":/ { ready = $4 }
		/^ *\}/ { if (node != "") print slot, node, phase, (ready == "" ? "-" : ready); node = slot = phase = ready = "" }'
}
# answer SLOT: what the replica's web server says, by a stream to its host.
answer() {
	printf 'GET / HTTP/1.0\r\n\r\n' | timeout 60 "$form" proxy "hello-server/$1" 8080 | tr -d '\r' | tail -n 1
}
show_answers() {
	local slot node phase ready text
	while read -r slot node phase ready; do
		text=$(answer "$slot")
		case $text in hello\ from\ *) ;; *) die "replica $slot on $node answered: $text" ;; esac
		say "demo: replica $slot on $node: $text"
	done < <(replicas)
}

next "ask each replica"
[ "$(replicas | wc -l)" = 2 ] || die "there are not two replicas: $(replicas)"
show_answers

next "kill a node"
victim=
for n in 2 3; do
	peer=FORM_PEER_$n
	if replicas | grep -q -- " ${!peer##*/} "; then victim=$n; fi
done
[ -n "$victim" ] || die "no replica on nodes 2 and 3"
peer=FORM_PEER_$victim
dead=${!peer##*/}
say "demo: kill -9 of node $victim: formd, shim and QEMU"
kill_node "$victim"

next "the replica comes back on another node"
healed() {
	local lines
	lines=$(replicas | awk -v dead="$dead" '$2 != dead && $3 == "running" && $4 != "-"')
	[ "$(wc -l <<<"$lines")" = 2 ]
}
poll 300 healed || die "after five minutes the replica is not back: $(replicas)"
show_answers

if [ -n "${KEEP:-}" ]; then
	next ""
	say "demo: kept. Look at it:"
	say "  . .demo/env; . .demo/kit.env; bin/form ls; bin/form ssh hello-server; make down"
else
	next "end it all"
	scripts/down.sh
	next ""
fi
done=1
printf '%s\n' "${steps[@]}"
printf '%8s s  in all\n' "$(since "$begin")"
echo "demo: ok"
