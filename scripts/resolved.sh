#!/usr/bin/env bash
# Unpacks systemd-resolved, D-Bus and what else they need and this machine lacks, for
# the test of splitdns on the real one:
#
#   scripts/resolved.sh DIR
#
# Nothing is installed: the package takes over the machine's /etc/resolv.conf. Where
# the archive gives nothing DIR lacks it, and the test says so.
. "$(dirname "$0")/env.sh"
dir=${1:?a folder}
[ ! -e "$dir/done" ] || exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0 # the test is for root on Debian

# known PACKAGE...: the first that this release has.
known() {
	local package
	for package in "$@"; do
		case $(apt-cache policy "$package" | sed -n 's/^ *Candidate: *//p') in
		'' | '(none)') ;;
		*)
			echo "$package"
			return
			;;
		esac
	done
}
fetch() {
	apt-get -qq -y --download-only --no-install-recommends -o DPkg::Lock::Timeout=120 -o Dir::Cache::archives="$dir/debs" \
		install "$(known systemd-resolved systemd)" "$(known dbus-daemon dbus)" </dev/null
}
rm -rf "$dir"
mkdir -p "$dir/debs/partial" "$dir/root"
fetch || { apt-get -qq update && fetch; } || {
	say "resolved: the archive did not give systemd-resolved; it is not tested"
	exit 0
}
for deb in "$dir"/debs/*.deb; do
	case ${deb##*/} in
	\** | libc6_* | libc-bin_*) ;; # none; and the C library is the machine's
	*) dpkg-deb -x "$deb" "$dir/root" ;;
	esac
done
rm -rf "$dir/debs"
touch "$dir/done"
