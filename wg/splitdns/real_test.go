//go:build linux

package splitdns

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// mounts makes a machine of a package that is unpacked at $1: its files over this
// machine's, in mount namespace of its own.
const mounts = `set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
work=$(mktemp -d /run/overlay.XXXX)
over() { mkdir -p $work/$3/up $work/$3/work; mount -t overlay overlay -o lowerdir=$1:$2,upperdir=$work/$3/up,workdir=$work/$3/work $2; }
over $1/etc /etc etc
over $1/sbin $(readlink -f /sbin) sbin
over $1/lib $(readlink -f /lib) lib
rm -f /etc/resolv.conf
if [ -e /etc/resolvconf/interface-order ]; then
	ln -s /run/resolvconf/resolv.conf /etc/resolv.conf
	mkdir -p /run/resolvconf/interface
	resolvconf --enable-updates
else
	echo 'resolv_conf=/etc/resolv.conf' >/etc/resolvconf.conf
fi
echo 'nameserver 192.0.2.1' | resolvconf -a eth0.dhclient
shift
exec "$@"
`

// The real resolvconf, Debian's and openresolv. FORMATION_RESOLVCONF is a folder
// of packages of theirs, each unpacked by dpkg -x.
func TestRealResolvconf(t *testing.T) {
	dir := os.Getenv("FORMATION_RESOLVCONF")
	if dir == "" || os.Getuid() != 0 {
		t.Skip("set FORMATION_RESOLVCONF to a folder with unpacked packages, as root")
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*", "sbin", "resolvconf"))
	if err != nil || len(packages) == 0 {
		t.Fatal("no package in ", dir, err)
	}
	for _, p := range packages {
		root := filepath.Dir(filepath.Dir(p))
		t.Run(filepath.Base(root), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", mounts, "sh", root, os.Args[0], "-test.run=^TestInsideResolvconf$", "-test.v")
			cmd.Env = append(os.Environ(), "FORMATION_RESOLVCONF_INSIDE=1")
			out, err := cmd.CombinedOutput()
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInsideResolvconf(t *testing.T) {
	if os.Getenv("FORMATION_RESOLVCONF_INSIDE") == "" {
		t.Skip("part of TestRealResolvconf")
	}
	read := func() string {
		b, err := os.ReadFile("/etc/resolv.conf")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := read()
	if got := nameservers("/etc"); len(got) != 1 || got[0] != "192.0.2.1" {
		t.Fatalf("to begin with, %q", before)
	}
	state := filepath.Join(t.TempDir(), "set")
	r, err := New(Config{State: state})
	if err != nil {
		t.Fatal(err)
	}
	by, err := r.Set(context.Background(), Want{Interface: "form0", Servers: []netip.Addr{netip.MustParseAddr("10.128.0.53")}, Domains: []string{"dev.formation.cloud"}})
	if err != nil || by != "resolvconf" {
		t.Fatalf("by %q: %v", by, err)
	}
	if got := nameservers("/etc"); len(got) != 2 || got[0] != "10.128.0.53" || got[1] != "192.0.2.1" {
		t.Errorf("set:\n%s", read())
	}
	next, err := New(Config{State: state}) // as after a crash
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Undo(context.Background()); err != nil || read() != before {
		t.Errorf("taken back: %v\n%s", err, read())
	}
}
