package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg/wgtest"
)

// user is somebody with form and a key, in a network namespace.
type user struct {
	t     *testing.T
	ns    *wgtest.Namespace
	form  string // the program
	owner stmt.Key
	env   []string
}

func newUser(t *testing.T, ns *wgtest.Namespace) *user {
	t.Helper()
	dir := t.TempDir()
	u := &user{t: t, ns: ns, form: filepath.Join(dir, "form")}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", u.form, "github.com/formthefog/formation/cmd/form").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	key := newKey(t)
	u.owner = stmt.KeyOf(key)
	file := filepath.Join(dir, "owner.pem")
	if err := keystore.Save(file, key, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "config", "form"), 0o700); err != nil {
		t.Fatal(err)
	}
	u.env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"), "FORM_KEY_FILE="+file)
	return u
}

// asks has form ask a node.
func (u *user) asks(p *proc, ip string) {
	for _, a := range p.addrs {
		if rest, ok := strings.CutPrefix(a, "/ip4/"+ip+"/tcp/"); ok {
			u.env = append(u.env, "FORM_PEER=/ip4/"+ip+"/tcp/"+rest)
		}
	}
}

// must is what form answers.
func (u *user) must(args ...string) string {
	u.t.Helper()
	cmd := u.ns.Command(context.Background(), append([]string{u.form}, args...)...)
	cmd.Env = u.env
	var talk strings.Builder
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		u.t.Fatalf("form %v: %v\n%s", args, err, &talk)
	}
	return string(out)
}

// joins gives the user's machine an interface on the mesh, until the test ends.
func (u *user) joins() (iface string, address netip.Addr) {
	u.t.Helper()
	iface = fmt.Sprintf("fo%d", os.Getpid())
	out := u.must("net", "join", "--interface", iface, "--no-dns", "--detach")
	u.t.Cleanup(func() { u.must("net", "leave") })
	address, err := netip.ParseAddr(strings.TrimSpace(out[strings.LastIndex(out, " ")+1:]))
	if err != nil {
		u.t.Fatalf("join says %q", out)
	}
	return iface, address
}

// A node is a peer of its operator's devices, by address and by name, from when both
// say so; one that says it alone is nobody's.
func TestOperatorReachesItsNode(t *testing.T) {
	a, b, c := wgtest.NewNamespace(t, "a"), wgtest.NewNamespace(t, "b"), wgtest.NewNamespace(t, "c")
	wgtest.Link(a, "lan", "192.168.7.1/24", b, "lan", "192.168.7.2/24")
	wgtest.Link(a, "side", "192.168.8.1/24", c, "side", "192.168.8.2/24")
	u := newUser(t, b)
	mine := newProcIn(t, a, "--accept", "any", "--operator", u.owner.String()).start()
	hostile := newProcIn(t, c, "--join", mine.ticket(), "--operator", u.owner.String()).start()
	u.asks(mine, "192.168.7.1")
	within(t, 20*time.Second, "both nodes", func() error {
		if nodes, err := mine.local.Nodes(t.Context()); err != nil || len(nodes) != 2 || len(nodes[0].Operators) != 1 || len(nodes[1].Operators) != 1 {
			return fmt.Errorf("%+v, %v", nodes, err)
		}
		return nil
	})
	iface, address := u.joins()
	peers := func(ns *wgtest.Namespace, iface string) int {
		return len(strings.Fields(ns.Run("wg", "show", iface, "peers")))
	}
	if n := peers(b, iface); n != 0 {
		t.Errorf("%d nodes are peers by their own word", n)
	}
	u.must("node", "operator", mine.key.String())
	began := time.Now()
	ping := func(to netip.Addr) error {
		out, err := b.Output(t.Context(), "ping", "-n", "-c", "1", "-W", "1", to.String())
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	within(t, 40*time.Second, "a ping of the node", func() error { return ping(mine.mesh6()) })
	t.Logf("first ping %s after the owner's word", time.Since(began).Round(time.Millisecond))
	name := names.Label(mine.key) + "." + names.Nodes + "." + names.Zone
	within(t, 20*time.Second, "the node's name", func() error {
		out, err := b.Output(t.Context(), "dig", "@"+address.String(), "+short", "+time=2", "+tries=1", "AAAA", name)
		if err == nil && strings.TrimSpace(out) != mine.mesh6().String() {
			err = fmt.Errorf("%s is %q", name, out)
		}
		return err
	})
	if n := peers(b, iface); n != 1 {
		t.Errorf("the device has %d peers, want its own node alone", n)
	}
	if m, err := mine.local.Mesh(t.Context()); err != nil || len(m.Peers) != 1 || m.Peers[0].Kind != "device" || m.Peers[0].Handshake == nil {
		t.Errorf("the node's peers are %+v, %v", m.Peers, err)
	}
	if m, err := hostile.local.Mesh(t.Context()); err != nil || len(m.Peers) != 0 {
		t.Errorf("the hostile node's peers are %+v, %v", m.Peers, err)
	}
}
