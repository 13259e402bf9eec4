#!/bin/sh
# Runs once inside the bootstrap, after the packages are in place and while apt
# still knows the archive. $1 is the root of the new system, ARCH its Debian
# architecture. What lands in $1/.formation is taken out again by the splitter.
#
# The kernel is unpacked rather than installed: its package wants an initramfs
# generator, a boot loader's hooks and 100 MB beside the root filesystem, and
# none of that is used by a guest that is booted with -kernel and -initrd.
set -eu
root=$1
side=$root/.formation
in_root() { chroot "$root" env LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }

mkdir -p "$side/deb" "$side/tree"
image=$(in_root apt-cache depends "linux-image-cloud-$ARCH" |
	sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
if [ -z "$image" ]; then
	echo "no kernel package: linux-image-cloud-$ARCH names none" >&2
	exit 1
fi
echo "kernel: $image" >&2
in_root sh -euc 'cd /.formation/deb && apt-get -qq -o APT::Sandbox::User=root download "$1"' sh "$image"
in_root sh -euc 'dpkg-deb -x /.formation/deb/*.deb /.formation/tree'
release=${image#linux-image-}
in_root depmod -b /.formation/tree "$release"
printf '%s\n' "$release" >"$side/release"
in_root sh -euc 'dpkg-deb -f /.formation/deb/*.deb Package Version Architecture' |
	sed 's/^[^:]*: //' | paste -sd ' ' - >"$side/kernel-package"
sha256sum "$side"/deb/*.deb | cut -d ' ' -f 1 >"$side/kernel-sha256"
in_root dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' | LC_ALL=C sort >"$side/packages"
rm -rf "$side/deb"

# The guest's own sources: the public archive, whatever mirror built this.
cat >"$root/etc/apt/sources.list" <<SOURCES
deb http://deb.debian.org/debian $SUITE main
deb http://deb.debian.org/debian $SUITE-updates main
deb http://deb.debian.org/debian-security $SUITE-security main
SOURCES
rm -f "$root"/etc/apt/sources.list.d/*.list "$root"/etc/apt/sources.list.d/*.sources \
	"$root"/etc/apt/preferences.d/formation-build

# sshd: keys only unless the guest agent says otherwise. sshd keeps the first
# value it reads, so a drop-in that sorts before this one overrides it.
cat >"$root/etc/ssh/sshd_config.d/50-formation.conf" <<'SSHD'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
SSHD
chmod 0644 "$root/etc/ssh/sshd_config.d/50-formation.conf" "$root/etc/apt/sources.list"
# Host keys are born in the guest; a key in an image would be everybody's key.
rm -f "$root"/etc/ssh/ssh_host_*

# Packages whose maintainer scripts link man pages fail without the folders.
for section in 1 2 3 4 5 6 7 8; do
	mkdir -p "$root/usr/share/man/man$section"
done
: >"$root/etc/machine-id"
echo formation >"$root/etc/hostname"
: >"$root/etc/resolv.conf"
: >"$root/etc/motd"
