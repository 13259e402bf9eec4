#!/usr/bin/env bash
# Starts a swarm of NODES (3) formd on this machine and writes .demo/env.
# Node 1 makes a private network; the others join it by ticket and fetch the
# base image from it. Repeating it while a swarm runs is an error: make down.
. "$(dirname "$0")/env.sh"
. scripts/swarm.sh
nodes=${NODES:-3}
[[ $nodes =~ ^[1-9][0-9]?$ ]] || die "NODES=$nodes is not a number from 1 to 99"

scripts/setup.sh
make -s build
base=$(scripts/base.sh)

if [ -d "$DEMO" ]; then
	[ -z "$(pids_of "$DEMO")" ] || die "a swarm is up already" "look at it: . .demo/env; bin/form status" "end it: make down"
	scripts/down.sh
fi
mkdir -p "$DEMO"
# A unix socket's path has at most 107 bytes; checkouts may be deep.
sockets=$DEMO
if [ ${#DEMO} -gt 80 ]; then
	sockets=$(mktemp -d "${TMPDIR:-/tmp}/formation.XXXXXX")
	echo "$sockets" >"$DEMO/sockets"
fi

up=0
trap '[ "$up" = 1 ] || { mkdir -p "$CACHE/failed"; cp "$DEMO"/*.log "$CACHE/failed/" 2>/dev/null; say "up: failed; logs are in $CACHE/failed"; scripts/down.sh; }' EXIT

# start N ARGS...: formd N in the background, and wait for its ready line.
start() {
	local n=$1
	shift
	local dir=$DEMO/node$n ready=$DEMO/node$n.ready log=$DEMO/node$n.log
	mkdir -p "$dir"
	: >"$ready"
	setsid bin/formd run --data "$dir" --api "unix://$sockets/$n.sock" \
		--listen /ip4/127.0.0.1/tcp/0 --listen /ip4/127.0.0.1/udp/0/quic-v1 \
		--web off --metrics off --no-mdns --no-portmap --mesh off "$@" \
		</dev/null >"$ready" 2>"$log" &
	local pid=$!
	echo "$pid" >>"$DEMO/pids"
	if ! poll 60 ready_or_dead "$pid" "$ready" || ! grep -q '^ready ' "$ready"; then
		tail -n 20 "$log" >&2
		die "node $n did not become ready"
	fi
	local peer listen
	peer=$(sed -n 's/^ready .*peer=\([^ ]*\).*/\1/p' "$ready")
	listen=$(sed -n 's/^ready .*listen=\([^, ]*\).*/\1/p' "$ready")
	case $listen in */p2p/*) ;; *) listen=$listen/p2p/$peer ;; esac
	{
		echo "export FORM_API_$n=unix://$sockets/$n.sock"
		echo "export FORM_PEER_$n=$listen"
		echo "export FORM_DATA_$n=$dir"
		echo "export FORM_PID_$n=$pid"
	} >>"$DEMO/env.part"
	say "up: node $n is ready (pid $pid)"
}
ready_or_dead() { grep -q '^ready ' "$2" || [ ! -d "/proc/$1" ]; }

start 1 --accept any
export FORM_API=unix://$sockets/1.sock
ticket=$(bin/form net invite | tail -n 1)
[ -n "$ticket" ] || die "form net invite printed no ticket"
printf 'export FORM_API=%q\nexport FORM_TICKET=%q\n' "$FORM_API" "$ticket" >>"$DEMO/env.part"
# A developer's kit for this swarm alone: the user's own is not touched.
# GOCACHE, because a shell that has read this may well build again.
cat >"$DEMO/kit.env" <<KIT
export FORM_CONFIG=$DEMO/kit/config
export XDG_DATA_HOME=$DEMO/kit/data
export XDG_CACHE_HOME=$DEMO/kit/cache
export FORM_PASSWORD=demo
export GOCACHE=$(go env GOCACHE)
KIT
(. "$DEMO/kit.env" && bin/form kit init --yes) >"$DEMO/kit.log" 2>&1 || {
	cat "$DEMO/kit.log" >&2
	die "form kit init failed"
}
imported=$(. "$DEMO/kit.env" && bin/form base import --publish "$BASE_CAR" | tail -n 1)
[ "$imported" = "$base" ] || die "node 1 imported base $imported, not $base"
for ((n = 2; n <= nodes; n++)); do
	start "$n" --join "$ticket" --accept any
done
mv "$DEMO/env.part" "$DEMO/env"
up=1
say "up: $nodes nodes; use them: . .demo/env; . .demo/kit.env; bin/form node ls; end them: make down"
