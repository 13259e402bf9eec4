#!/usr/bin/env bash
# Installs what Formation needs and this machine lacks, on Debian and Ubuntu.
#
#   scripts/setup.sh          what building and running need
#   scripts/setup.sh test     and what only the tests need
#
# Asks nothing, changes nothing that is already there, and takes a blink when
# there is nothing to do.
. "$(dirname "$0")/env.sh"

case $(uname -m) in
x86_64) qemu=qemu-system-x86 qemu_cmd=qemu-system-x86_64 ;;
aarch64) qemu=qemu-system-arm qemu_cmd=qemu-system-aarch64 ;;
*) die "no set-up for $(uname -m)" "amd64 and arm64 are supported" ;;
esac

# package | a command or file it brings | why
needs="
$qemu|$qemu_cmd|runs the virtual machines
mmdebstrap|mmdebstrap|makes the Debian base image
debian-archive-keyring|/usr/share/keyrings/debian-archive-keyring.gpg|verifies what mmdebstrap downloads
squashfs-tools|sqfstar|packs images and layers
e2fsprogs|mkfs.ext4|formats the guests' disks
openssh-client|ssh|form ssh
iproute2|ip|networks of nodes and tests
nftables|nft|firewall rules of nodes, faults in tests
wireguard-tools|wg|inspects the mesh
mount|losetup|mounts images and sandboxes
util-linux|unshare|sandboxes
gcc|gcc|compiles the Automerge engine (cgo)
libc6-dev|/usr/include/stdio.h|compiles the Automerge engine (cgo)
ca-certificates|/etc/ssl/certs/ca-certificates.crt|TLS to the Go module proxy
git|git|the build records the commit
make|make|runs the build
"
if [ "$(id -u)" != 0 ] || [ "${1:-}" = test ]; then
	needs+="uidmap|newuidmap|builds images without root
"
fi
if [ "${1:-}" = test ]; then
	needs+="nodejs|node|reads our CAR files with other people's code
npm|npm|reads our CAR files with other people's code
bind9-dnsutils|dig|asks our DNS server with other people's code
iputils-ping|ping|pings over the mesh
tcpdump|tcpdump|shows what a host sees of its guests
rsync|rsync|copies over form proxy
curl|curl|asks public sites with other people's code
chromium|chromium|looks at the pages of simulated runs
"
fi

missing=()
while IFS='|' read -r package probe why; do
	[ -n "$package" ] || continue
	case $probe in
	/*) [ -e "$probe" ] && continue ;;
	*) command -v "$probe" >/dev/null && continue ;;
	esac
	say "setup: $package is missing ($why)"
	missing+=("$package")
done <<<"$needs"

# Go: go.mod names the version; any Go from 1.21 fetches that one by itself.
go_minor() { go version 2>/dev/null | sed -n 's/^go version go1\.\([0-9]*\).*/\1/p'; }
have_go=$(go_minor || true)
need_go=$((${have_go:-0} < 21))

[ ${#missing[@]} -gt 0 ] || [ "$need_go" = 1 ] || exit 0

command -v apt-get >/dev/null || die "this is neither Debian nor Ubuntu" "install by hand: ${missing[*]}"
as_root=()
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null ||
		die "installing packages needs root, and there is no sudo" "as root: apt-get install --no-install-recommends ${missing[*]}"
	as_root=(sudo)
	[ -t 0 ] || as_root=(sudo -n)
fi

log=$CACHE/setup.log
: >"$log"
start=$(now)
apt() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@" </dev/null >>"$log" 2>&1
}
say "setup: asking the archive (log: $log)"
apt update || say "setup: apt-get update failed for some source; trying with what is known"

# The first package of Go this release has that is new enough.
go_package() {
	local package
	for package in golang-go golang-1.{26,25,24,23,22,21}-go; do
		case $(apt-cache policy "$package" | sed -n 's/^ *Candidate: *\(2:\)\{0,1\}//p') in
		1.2[1-9]* | 1.[3-9][0-9]*)
			echo "$package"
			return
			;;
		esac
	done
	return 1
}
if [ "$need_go" = 1 ]; then
	package=$(go_package) ||
		die "Go 1.21 or newer is needed${have_go:+ (here is 1.$have_go)}, and this release's archive has none" \
			"get it from https://go.dev/dl/ and unpack it to /usr/local/go; it is found there without changing PATH"
	say "setup: $package is missing (builds everything; it fetches the Go version that go.mod names)"
	missing+=("$package")
fi

# Recommends would bring a desktop viewer, firmware and a host kernel.
say "setup: installing ${missing[*]}"
if ! apt install -y --no-install-recommends "${missing[@]}"; then
	tail -n 20 "$log" >&2
	die "apt-get could not install ${missing[*]}" "the whole log is $log" "on Ubuntu these are in the universe component"
fi
say "setup: done in $(since "$start") s"
