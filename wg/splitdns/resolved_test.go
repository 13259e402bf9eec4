//go:build linux

package splitdns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	meshdns "github.com/formthefog/formation/wg/dns"
)

// resolvedMachine makes a machine whose resolver is systemd-resolved, of packages that
// are unpacked at $1 or else its own: in mount, network and process namespaces of its
// own, with a network eth0 and an interface form0, and a bus without rules.
const resolvedMachine = `set -e
root=$1
shift
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/etc/up /run/etc/work /run/dbus /run/systemd $root/etc
mount -t overlay overlay -o lowerdir=$root/etc:/etc,upperdir=/run/etc/up,workdir=/run/etc/work /etc
rm -f /etc/resolv.conf
ln -s /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
echo 'hosts: files dns' >/etc/nsswitch.conf
printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' >/etc/systemd/resolved.conf
grep -q ^systemd-resolve: /etc/passwd || {
	echo systemd-resolve:x:990:990::/:/bin/false >>/etc/passwd
	echo systemd-resolve:x:990: >>/etc/group
}
libs=$(find $root -name 'lib*.so*' -printf '%h\n' | sort -u | tr '\n' :)
export PATH=$root/usr/bin:$root/bin:$PATH LD_LIBRARY_PATH=$libs
ip link set lo up
for i in eth0 form0; do
	ip link add $i type veth peer name wire-$i
	ip link set $i up
	ip link set wire-$i up
done
ip address add 192.0.2.1/24 dev eth0
ip address add 10.128.0.53/9 dev form0
cat >/run/bus.conf <<end
<busconfig>
<listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow eavesdrop="true"/></policy>
</busconfig>
end
mkfifo /run/ready
dbus-daemon --config-file=/run/bus.conf --nofork --nopidfile --print-address=4 4>/run/ready &
read -r address </run/ready
NOTIFY_SOCKET= $(ls -d $root/lib/systemd/systemd-resolved $root/usr/lib/systemd/systemd-resolved /lib/systemd/systemd-resolved 2>/dev/null | head -n 1) &
tries=0
until resolvectl dns eth0 192.0.2.1; do
	tries=$((tries + 1))
	[ $tries -lt 100 ]
	sleep 0.1
done 2>/dev/null
resolvectl domain eth0 '~.'
"$@"
`

// The real systemd-resolved asks the mesh about the mesh's names, and nobody else
// about them, until that is taken back: also what a process that was killed has set.
// FORMATION_RESOLVED is a folder of scripts/resolved.sh.
func TestRealResolved(t *testing.T) {
	dir := os.Getenv("FORMATION_RESOLVED")
	if dir == "" || os.Getuid() != 0 {
		t.Skip("set FORMATION_RESOLVED to a folder that scripts/resolved.sh has filled, as root")
	}
	root := filepath.Join(dir, "root")
	for program, places := range map[string][]string{
		"systemd-resolved": {root + "/lib/systemd", root + "/usr/lib/systemd", "/lib/systemd"},
		"resolvectl":       {root + "/usr/bin", "/usr/bin"},
		"dbus-daemon":      {root + "/usr/bin", "/usr/bin"},
	} {
		there := func(place string) bool { _, err := os.Stat(filepath.Join(place, program)); return err == nil }
		if !slices.ContainsFunc(places, there) {
			t.Skipf("there is no %s in %v", program, places)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", resolvedMachine, "sh", root, os.Args[0], "-test.run=^TestInsideResolved$", "-test.v", "-test.timeout=50s")
	cmd.Env = append(os.Environ(), "FORMATION_RESOLVED_INSIDE="+t.TempDir())
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: TestInsideResolved") {
		t.Error(err)
	}
}

const (
	ours       = "hello.dev.formation.cloud"
	nobodys    = "nobody.dev.formation.cloud"
	elses      = "example.com"
	address    = "10.128.7.7"
	elsewhere4 = "192.0.2.99"
)

// questions are which names a server was asked for.
type questions struct {
	mu    sync.Mutex
	names map[string]bool
}

func (a *questions) add(m *dns.Msg) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, q := range m.Question {
		a.names[strings.TrimSuffix(dns.CanonicalName(q.Name), ".")] = true
	}
}

// take returns which names were asked for since it was called last.
func (a *questions) take() map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := a.names
	a.names = map[string]bool{}
	return names
}

// nosy takes note of the questions that come in.
type nosy struct {
	net.PacketConn
	asked *questions
}

func (n nosy) ReadFrom(b []byte) (int, net.Addr, error) {
	size, from, err := n.PacketConn.ReadFrom(b)
	var m dns.Msg
	if err == nil && m.Unpack(b[:size]) == nil {
		n.asked.add(&m)
	}
	return size, from, err
}

// serveMesh answers as formd does.
func serveMesh(t *testing.T) *questions {
	s, err := meshdns.New(meshdns.Config{Zone: "dev.formation.cloud"})
	if err == nil {
		err = s.Set([]meshdns.Name{{Name: "hello", Targets: []meshdns.Target{{Addr4: netip.MustParseAddr(address)}}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	a := &questions{names: map[string]bool{}}
	udp, tcp := listenDNS(t, "10.128.0.53:53")
	serve(t, func(ctx context.Context) error { return s.Run(ctx, nosy{udp, a}, tcp) })
	return a
}

// serveElsewhere answers as a provider does, who knows nothing of the mesh.
func serveElsewhere(t *testing.T) *questions {
	a := &questions{names: map[string]bool{}}
	udp, tcp := listenDNS(t, "192.0.2.1:53")
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a.add(q)
		m := new(dns.Msg)
		m.SetRcode(q, dns.RcodeNameError)
		if q.Question[0].Name == elses+"." {
			m.Rcode = dns.RcodeSuccess
			if q.Question[0].Qtype == dns.TypeA {
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: elses + ".", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(elsewhere4)}}
			}
		}
		_ = w.WriteMsg(m) // who asked is gone
	})
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: h}, {Listener: tcp, Handler: h}} {
		serve(t, func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			g.Go(s.ActivateAndServe)
			<-started
			<-ctx.Done()
			return errors.Join(s.Shutdown(), g.Wait())
		})
	}
	return a
}

func listenDNS(t *testing.T, at string) (net.PacketConn, net.Listener) {
	udp, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	return udp, tcp
}

// serve runs f until the test ends.
func serve(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// lookup is an IPv4 address by the C library; "" is none.
func lookup(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "getent", "ahostsv4", name).Output()
	var exit *exec.ExitError
	const notFound = 2
	if errors.As(err, &exit) && exit.ExitCode() == notFound {
		return ""
	}
	if err != nil || len(strings.Fields(string(out))) == 0 {
		t.Errorf("getent %s: %v: %s", name, err, out)
		return "?"
	}
	return strings.Fields(string(out))[0]
}

func TestInsideResolved(t *testing.T) {
	dir := os.Getenv("FORMATION_RESOLVED_INSIDE")
	if dir == "" {
		t.Skip("part of TestRealResolved")
	}
	state := filepath.Join(dir, "set")
	next := func() *Resolver {
		r, err := New(Config{State: state})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	want := Want{Interface: "form0", Servers: []netip.Addr{netip.MustParseAddr("10.128.0.53")}, Domains: []string{"dev.formation.cloud", "d.f.ip6.arpa"}}
	if os.Getenv("FORMATION_RESOLVED_DIES") != "" {
		by, err := next().Set(t.Context(), want)
		fmt.Printf("set by %s, %v\n", by, err)
		select {} // until it is killed
	}
	mesh, elsewhere := serveMesh(t), serveElsewhere(t)
	// asks says whom the machine asks about what.
	asks := func(when string, set bool) {
		t.Helper()
		mesh.take()
		elsewhere.take()
		wantOurs := ""
		if set {
			wantOurs = address
		}
		for name, want := range map[string]string{ours: wantOurs, nobodys: "", elses: elsewhere4} {
			if got := lookup(t, name); got != want {
				t.Errorf("%s: %s is %q, want %q", when, name, got, want)
			}
		}
		m, e := mesh.take(), elsewhere.take()
		if m[ours] != set || m[nobodys] != set || e[ours] == set || e[nobodys] == set || m[elses] {
			t.Errorf("%s: the mesh was asked for %v, and elsewhere for %v", when, m, e)
		}
	}
	dies := func() {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestInsideResolved$")
		cmd.Env = append(os.Environ(), "FORMATION_RESOLVED_DIES=1")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "set by systemd-resolved, <nil>\n" {
			t.Errorf("it says %q, %v", line, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	}
	undone := func(r *Resolver) {
		t.Helper()
		if err := r.Undo(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(state); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it still remembers: %v", err)
		}
	}

	asks("before", false)
	r := next()
	if by, err := r.Set(t.Context(), want); err != nil || by != "systemd-resolved" {
		t.Fatalf("set by %q: %v", by, err)
	}
	asks("set", true)
	undone(r)
	asks("taken back", false)

	dies()
	asks("set by one that was killed", true)
	undone(next())
	asks("taken back by the next", false)

	dies()
	if out, err := exec.Command("ip", "link", "delete", "form0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	undone(next())
	if lookup(t, elses) != elsewhere4 || lookup(t, ours) != "" {
		t.Error("with the interface gone, the resolver does not answer as before")
	}
}
