package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/embedded"
	"github.com/formthefog/formation/wg/kernel"
	"github.com/formthefog/formation/wg/wgtest"
)

// newProcIn prepares a node with an interface on the mesh in a network namespace.
func newProcIn(t *testing.T, ns *wgtest.Namespace, args ...string) *proc {
	t.Helper()
	p := newProc(t)
	p.ns = ns
	p.args = append([]string{"run", "--data", filepath.Join(p.dir, "data"), "--api", "unix://" + p.socket(),
		"--vm-driver", "fake", "--web", "off", "--no-mdns", "--no-portmap", "--mesh", "userspace",
		"--listen", "/ip4/0.0.0.0/tcp/4001", "--listen", "/ip4/0.0.0.0/udp/4001/quic-v1",
		"--memory", "4G", "--disk", "50G", "--cpus", "4"}, args...)
	return p
}

// space is the address space of a node's network.
func (p *proc) space() wg.Space {
	p.t.Helper()
	self, err := p.local.Node(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := wg.NewSpace(self.Network.NetworkID(), self.Network.Settings().Prefix4)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// mesh6 is the node's own address on the mesh.
func (p *proc) mesh6() netip.Addr {
	p.t.Helper()
	return p.space().Address6(policy.Party{Node: p.key}.Identity())
}

// ping asks another node once over the mesh; it returns whether it answered.
func (p *proc) ping(to netip.Addr) error {
	out, err := p.ns.Output(p.t.Context(), "ping", "-n", "-c", "1", "-W", "1", to.String())
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Two nodes of a network have an interface each, with addresses and names that are
// theirs, where the network has them; what a machine reaches otherwise stays as it is.
// wg shows the interface, and nothing is left when they end.
func TestNodesOnTheMesh(t *testing.T) { nodesOnTheMesh(t, "userspace", "tun") }

// The same with WireGuard of the kernel's, where there is one. Where not, who
// insists on it is refused, and auto has the other kind.
func TestNodesOnTheMeshOfTheKernel(t *testing.T) {
	ns := wgtest.NewNamespace(t, "kernel")
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	var dev *kernel.Apart
	err = ns.Do(func() (err error) {
		dev, err = kernel.OpenApart(kernel.Config{Name: "form0", Key: private, Port: 4001})
		return err
	})
	if err == nil {
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		nodesOnTheMesh(t, "kernel", "wireguard")
		return
	}
	if !noKernel(err) {
		t.Fatal(err)
	}
	p := newProcIn(t, ns, "--mesh", "kernel")
	cmd := ns.Command(t.Context(), slices.Concat([]string{os.Args[0]}, p.args)...)
	cmd.Env = append(os.Environ(), "FORMD_TEST_MAIN=1", "HOME="+p.dir)
	out, _ := cmd.CombinedOutput() // the exit code is looked at
	if code := cmd.ProcessState.ExitCode(); code != api.ExitFailed || !strings.Contains(string(out), "the kernel has no") || !strings.Contains(string(out), "hint: modprobe wireguard") {
		t.Errorf("exit %d: %s", code, out)
	}
	q := newProcIn(t, ns, "--mesh", "auto").start()
	checks, err := q.local.Doctor(t.Context())
	if i := slices.IndexFunc(checks, func(c api.Check) bool { return c.Name == "mesh" }); err != nil || i < 0 || checks[i].State != "ok" || !strings.Contains(checks[i].Detail, "form0, wireguard-go, has 0 peers") {
		t.Errorf("doctor says %+v, %v", checks, err)
	}
	if code := q.terminate(); code != api.ExitOK {
		t.Errorf("exit %d", code)
	}
}

func nodesOnTheMesh(t *testing.T, kind, link string) {
	t.Helper()
	a, b := wgtest.NewNamespace(t, "a"), wgtest.NewNamespace(t, "b")
	wgtest.Link(a, "lan", "192.168.7.1/24", b, "lan", "192.168.7.2/24")
	const lan = "172.21.0.0/16"
	a.Run("ip", "route", "add", lan, "via", "192.168.7.2")
	one := newProcIn(t, a, "--accept", "any", "--mesh", kind, "--mesh-prefix", "172.16.0.0/12", "--mesh-zone", "fog.example.org").start()
	two := newProcIn(t, b, "--join", one.ticket(), "--mesh", kind).start()
	began := time.Now()
	within(t, 30*time.Second, "a ping over the mesh", func() error { return one.ping(two.mesh6()) })
	t.Logf("first ping %s after the second node was ready", time.Since(began).Round(time.Millisecond))
	within(t, 20*time.Second, "IPv4 addresses", func() error {
		for _, p := range []*proc{one, two} {
			for _, o := range []*proc{one, two} {
				space := p.space()
				if space.Prefix4().String() != "172.16.0.0/12" {
					return fmt.Errorf("the mesh is in %s", space.Prefix4())
				}
				if err := p.ping(space.Candidate4(policy.Party{Node: o.key}.Identity(), 0)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	name := names.Label(two.key) + "." + names.Nodes + ".fog.example.org"
	within(t, 20*time.Second, "a name", func() error {
		out, err := a.Output(t.Context(), "dig", "@172.16.0.53", "+time=2", "+tries=1", "+short", "AAAA", name)
		if err == nil && strings.TrimSpace(out) != two.mesh6().String() {
			err = fmt.Errorf("%s is %q", name, out)
		}
		return err
	})
	if m, err := one.local.Mesh(t.Context()); err != nil || !slices.Equal(m.InTheWay, []string{lan}) || !strings.HasPrefix(m.Address, "172.") {
		t.Errorf("with %s reached otherwise: %+v, %v", lan, m, err)
	}
	if got := a.Run("ip", "route", "get", "172.21.0.1"); !strings.Contains(got, "via 192.168.7.2") {
		t.Errorf("%s is reached by %s", lan, got)
	}
	var sockets []string
	for _, ns := range []*wgtest.Namespace{a, b} {
		name := strings.Fields(ns.Run("ip", "-br", "link", "show", "type", link))[0]
		sockets = append(sockets, filepath.Join(embedded.ControlDir, name+".sock"))
		if out := ns.Run("wg", "show", name, "latest-handshakes"); strings.Count(out, "\n") != 1 {
			t.Errorf("wg shows %q", out)
		}
	}
	for _, p := range []*proc{one, two} {
		if code := p.terminate(); code != api.ExitOK {
			t.Errorf("exit %d", code)
		}
	}
	for _, ns := range []*wgtest.Namespace{a, b} {
		if out := ns.Run("ip", "-o", "link", "show", "type", link); out != "" {
			t.Errorf("left behind: %s", out)
		}
	}
	for _, path := range sockets {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left behind: %s (%v)", path, err)
		}
	}
}

// Without the right to make an interface the machine has none, and says so once;
// who insists on one is refused.
func TestWithoutTheRightToAnInterface(t *testing.T) {
	ns := wgtest.NewNamespace(t, "plain")
	bare := []string{"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"}
	p := newProcIn(t, ns, "--mesh", "auto")
	p.wrap = bare
	p.start()
	m, err := p.local.Mesh(t.Context())
	if err != nil || m.Interface != "" || !strings.Contains(m.Reason, "not permitted") || m.Port != 4001 {
		t.Errorf("%+v, %v", m, err)
	}
	checks, err := p.local.Doctor(t.Context())
	if i := slices.IndexFunc(checks, func(c api.Check) bool { return c.Name == "mesh" }); err != nil || i < 0 || checks[i].State != "ok" || !strings.Contains(checks[i].Fix, "CAP_NET_ADMIN") {
		t.Errorf("doctor says %+v, %v", checks, err)
	}
	if code := p.terminate(); code != api.ExitOK {
		t.Errorf("exit %d", code)
	}
	q := newProcIn(t, ns)
	cmd := ns.Command(t.Context(), slices.Concat(bare, []string{os.Args[0]}, q.args)...)
	cmd.Env = append(os.Environ(), "FORMD_TEST_MAIN=1", "HOME="+q.dir)
	out, _ := cmd.CombinedOutput() // the exit code is looked at
	if code := cmd.ProcessState.ExitCode(); code != api.ExitNotAllowed || !strings.Contains(string(out), "hint: run formd as root") {
		t.Errorf("exit %d: %s", code, out)
	}
}
