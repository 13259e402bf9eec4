#!/usr/bin/env bash
# Proves that no install step hides on this machine: makes a bare Debian root
# that holds only git, make, ca-certificates and this machine's Go, clones the
# checkout into it, and runs both commands of the README in there, in mount, PID,
# IPC and UTS namespaces of their own.
#
#   make fresh                  make demo && make test
#   scripts/fresh.sh CMD...     these instead, e.g. "make demo"
#   WORKTREE=1                  with the changes that are not committed yet
#
# Needs root and mmdebstrap. Leaves no file, process or mount.
. "$(dirname "$0")/env.sh"
[ "$(id -u)" = 0 ] || die "make fresh needs root" "sudo make fresh"
scripts/setup.sh
[ $# -gt 0 ] || set -- "make demo" "make test"

root=$(mktemp -d "${TMPDIR:-/var/tmp}/formation-fresh.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
log=$CACHE/fresh.log

say "fresh: a bare Debian root in $root"
mmdebstrap --quiet --variant=minbase --include=git,make,ca-certificates \
	--keyring=/usr/share/keyrings/debian-archive-keyring.gpg "${SUITE:-bookworm}" "$root" >"$log" 2>&1 || {
	tail -n 20 "$log" >&2
	die "mmdebstrap failed" "the whole log is $log"
}
cp -a "$(go env GOROOT)" "$root/usr/local/go"
# The network's ways in, which belong to the place and not to the machine.
cp --remove-destination -L /etc/resolv.conf "$root/etc/resolv.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
settings=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin
	LANG=C.UTF-8 CI=true SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
	NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt)
for name in GOPROXY GOSUMDB GONOSUMDB GONOPROXY GOPRIVATE; do
	settings+=("$name=$(go env $name)")
done
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY npm_config_registry; do
	[ -z "${!name:-}" ] || settings+=("$name=${!name}")
done

if [ -n "${WORKTREE:-}" ]; then
	mkdir "$root/root/formation"
	find . -maxdepth 1 -mindepth 1 ! -name .cache ! -name .demo ! -name bin -exec cp -a -t "$root/root/formation" {} +
else
	git clone --quiet --no-hardlinks "$ROOT" "$root/root/formation"
	[ -z "$(git status --porcelain)" ] || say "fresh: changes that are not committed are not in it (WORKTREE=1 takes them)"
fi

cat >"$root/root/run" <<'RUN'
set -eu
cd /root/formation
for command in "$@"; do
	echo "fresh: $command"
	sh -c "$command" </dev/null
done
RUN
# A real root, not a chroot: namespaces and pivot_root must work in it as they do
# on a machine.
enter='
	mount --bind "$0" "$0"
	cd "$0"
	mkdir -p .host
	mount --rbind /dev dev
	mount --rbind /sys sys
	mount -t proc proc proc
	hostname fresh
	pivot_root . .host
	umount -l /.host
	exec env -i "$@"'
say "fresh: running $*"
code=0
unshare --mount --pid --fork --kill-child --ipc --uts --propagation private \
	sh -euc "$enter" "$root" "${settings[@]}" sh /root/run "$@" 2>&1 | tee -a "$log" || code=$?
if grep -qF " $root" /proc/mounts; then
	die "a mount was left below $root"
fi
[ "$code" = 0 ] || die "the README's commands failed on a bare Debian (status $code)" "the whole log is $log"
echo "fresh: ok"
