#!/usr/bin/env bash
# Makes the debian:12 base once and keeps it as a CAR in the cache. Prints the
# base's CID.
. "$(dirname "$0")/env.sh"
if [ -s "$BASE_CAR" ] && [ -s "$CACHE/base.cid" ]; then
	cat "$CACHE/base.cid"
	exit 0
fi
[ -x bin/form ] || make -s build >&2
say "base: making debian:12 from the Debian archive: once, about two minutes"
kit=$CACHE/kit
export FORM_CONFIG=$kit/config XDG_DATA_HOME=$kit/data XDG_CACHE_HOME=$kit/cache FORM_PASSWORD=formation-base
mkdir -p "$kit"
[ -e "$FORM_CONFIG/config.toml" ] || bin/form kit init --yes >"$CACHE/base.log" 2>&1 || {
	cat "$CACHE/base.log" >&2
	die "form kit init failed"
}
cid=$(bin/form base build | tail -n 1)
[ -n "$cid" ] || die "form base build printed no CID"
bin/form --quiet pack export "$cid" -o "$BASE_CAR.part" >/dev/null
mv "$BASE_CAR.part" "$BASE_CAR"
rm -rf "$kit"
echo "$cid" >"$CACHE/base.cid"
cat "$CACHE/base.cid"
