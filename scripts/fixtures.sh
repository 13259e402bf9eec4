#!/usr/bin/env bash
# Prepares what tests on real parts need, in DIR:
#
#   DIR/store             a store that holds the debian:12 base
#   DIR/vm                vmlinuz, modules.cpio, modules.sqfs, rootfs.sqfs, and
#                         layer-N.sqfs (topmost first) of the example pack, which
#                         has python3
#
#   scripts/fixtures.sh DIR
. "$(dirname "$0")/env.sh"
dir=${1:?a folder}
rm -rf "$dir"
mkdir -p "$dir/vm" "$dir/data/form"
export FORM_CONFIG=$dir/config XDG_DATA_HOME=$dir/data XDG_CACHE_HOME=$dir/cache FORM_PASSWORD=fixtures
form=$ROOT/bin/form
"$form" --quiet kit init --yes >/dev/null
base=$("$form" --quiet base import "$BASE_CAR" | tail -n 1)
pack=$("$form" --quiet pack build docs/examples/hello-server | tail -n 1)
ln -s data/form/store "$dir/store"

# entries CID: "KIND ROOT" a line, of the JSON that form prints one field a line.
entries() {
	"$form" --json pack inspect "$1" | awk -F'"' '
		$2 == "kind" { kind = $4 }
		$2 == "/" && kind != "" { print kind, $4; kind = "" }'
}
place() { ln -s "$dir/store/images/$1.img" "$dir/vm/$2"; }
while read -r kind root; do
	case $kind in
	kernel) place "$root" vmlinuz ;;
	initrd) place "$root" modules.cpio ;;
	modules) place "$root" modules.sqfs ;;
	rootfs) place "$root" rootfs.sqfs ;;
	esac
done < <(entries "$base")
n=0
while read -r kind root; do
	[ "$kind" = layer ] || continue
	place "$root" "layer-$n.sqfs"
	n=$((n + 1))
done < <(entries "$pack")
for file in vmlinuz modules.cpio modules.sqfs rootfs.sqfs layer-0.sqfs; do
	[ -s "$dir/vm/$file" ] || die "the fixtures lack $file"
done
