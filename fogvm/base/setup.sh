#!/bin/sh
# Runs before the first package is unpacked. $1 is the root of the new system,
# ARCH its Debian architecture.
#
# /usr is merged from the start, by links: without them apt pulls the usrmerge
# package and with it 48 MB of perl. The pin makes the solver take usr-is-merged,
# which only checks the result.
set -eu
root=$1
links="bin sbin lib"
[ "$ARCH" != amd64 ] || links="$links lib32 lib64 libx32"
for dir in $links; do
	mkdir -p "$root/usr/$dir"
	ln -s "usr/$dir" "$root/$dir"
done
mkdir -p "$root/etc/apt/preferences.d"
printf 'Package: usrmerge\nPin: release *\nPin-Priority: -1\n' >"$root/etc/apt/preferences.d/formation-build"
