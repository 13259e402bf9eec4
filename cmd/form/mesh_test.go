package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/cmd/internal/mesh"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
	"github.com/formthefog/formation/wg/wgtest"
)

// meshGuest is one of the daemon's, on the mesh.
type meshGuest struct {
	*wgtest.Guest
	address, address4 netip.Addr
	cut               func() // its host takes nothing for it any more
}

// hosts makes the daemon the host of the first replica of an instance: it has a
// libp2p node and a carrier, and its guest believes the statements that it has.
func (h *home) hosts(id string) *meshGuest {
	t, d := h.t, h.daemon
	t.Helper()
	space, err := wg.NewSpace(testNet, testSettings.Prefix4)
	if err != nil {
		t.Fatal(err)
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	node, owner := stmt.KeyOf(testKey(9)), stmt.KeyOf(h.owner)
	identity := policy.Party{Instance: id, Node: node}.Identity()
	public := key.PublicKey()
	g := &meshGuest{address: space.Address6(identity), address4: space.Candidate4(identity, 0)}
	at := netip.MustParseAddr(h.daemon.at())
	socket, err := carrier.Listen(0, at)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := netip.AddrPortFrom(at, socket.Port())
	if err := d.SetClaims(context.Background(), []crdt.Claim{{
		Instance: id, Owner: owner, Phase: crdt.ClaimRunning, Ready: true, Generation: 1,
		MeshKey: base64.StdEncoding.EncodeToString(public[:]), Address: g.address4.String(), Address6: g.address.String(), Endpoint: endpoint.String(),
	}}); err != nil {
		t.Fatal(err)
	}
	c, err := carrier.New(carrier.Config{Socket: socket, Streams: noStreams{}, Now: agent.Boottime,
		Addresses: func() []netip.AddrPort { return []netip.AddrPort{endpoint} }})
	if err != nil {
		t.Fatal(err)
	}
	g.Guest = wgtest.NewGuest(t, key, []netip.Addr{g.address, g.address4}, func(b []byte, to netip.AddrPort) { c.Send("guest", b, to) })
	c.Stations([32]byte{}, map[string]carrier.Station{"guest": {Public: public, Deliver: g.Deliver}})
	g.cut = func() { c.Stations([32]byte{}, nil) }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- c.Run(ctx) }()
	views := d.Watch(ctx)
	go func() {
		var err error
		for v := range views {
			err = errors.Join(err, g.follow(space, policy.OfReplica(v, owner, id, 0, node)))
		}
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended, socket.Close()); err != nil {
			t.Error(err)
		}
	})
	d.listen(t, func(n *p2p.Node) {
		n.Handle("wg/1", func(_ context.Context, from peer.ID, s net.Conn) { c.Accept(from, s) })
		n.Handle(api.ProtoProxy, func(_ context.Context, _ peer.ID, s net.Conn) {
			defer s.Close()
			var r api.ProxyRequest
			if err := api.ReadHeader(s, &r); err == nil && api.WriteHeader(s, api.StreamReply{OK: true}) == nil {
				_, _ = io.WriteString(s, "by the stream\n") // the other end judges
			}
		})
	})
	return g
}

// follow makes the parties the guest's peers.
func (g *meshGuest) follow(space wg.Space, parties []policy.Party) error {
	var changes []wgtypes.PeerConfig
	for _, p := range parties {
		own := []netip.Addr{space.Address6(p.Identity()), space.Candidate4(p.Identity(), 0)}
		changes = append(changes, wgtypes.PeerConfig{PublicKey: wg.Key(p.Key), ReplaceAllowedIPs: true, AllowedIPs: wgtest.Routes(own...)})
	}
	return g.Configure(changes)
}

type noStreams struct{}

func (noStreams) OpenStream(context.Context, peer.ID) (io.ReadWriteCloser, error) {
	return nil, errors.New("a host opens none to a device")
}

// serve has the guest say a word on a port and hang up.
func (g *meshGuest) serve(t *testing.T, port uint16, word string) {
	t.Helper()
	l, err := g.Net.ListenTCPAddrPort(netip.AddrPortFrom(g.address, port))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word) // the other end judges
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
}

// runtimeDir gives agents of this test a place, and ends them with it.
func (h *home) runtimeDir() {
	h.t.Helper()
	h.t.Setenv("XDG_RUNTIME_DIR", filepath.Join(h.dir, "run"))
	h.t.Setenv("FORM_OWNER", "")
	h.t.Setenv("FORM_TEST_MAIN", "1")
	h.t.Setenv("FORM_AGENT", "")
	h.t.Setenv("FORM_AGENT_IDLE", "20s") // for one that nobody has waited for
	h.t.Cleanup(func() {
		if code, _, talk := h.form("net", "agent", "stop"); code != 0 && code != api.ExitNotFound {
			h.t.Errorf("stop the agent: exit %d: %s", code, talk)
		}
	})
}

// A guest is reached over the mesh without root and without formd: by name, mesh
// name, ID, replica and address; the agent starts by itself, once.
func TestProxyOverTheMesh(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "hello", Replicas: 1})
	g := h.hosts(id)
	h.runtimeDir()
	g.serve(t, 8080, "hello over the mesh\n")
	begun := time.Now()
	for i, host := range []string{"hello", "hello.fog.example.org", "0.hello.fog.example.org", id, "hello/0", g.address.String(), g.address4.String()} {
		code, out, talk := h.form("proxy", "--via", "mesh", host, "8080")
		if code != 0 || out != "hello over the mesh\n" {
			t.Fatalf("%s: exit %d, %q\n%s", host, code, out, talk)
		}
		if i == 0 {
			t.Logf("the first connection, with the agent's start: %s", time.Since(begun))
		}
	}
	if code, _, talk := h.form("proxy", "--via", "mesh", "hello", "81"); code != api.ExitFailed || !strings.Contains(talk, "nothing listens on port 81 of hello/0") {
		t.Errorf("a closed port: exit %d: %s", code, talk)
	}
	code, out, talk := h.form("net", "agent", "status", "--json")
	var s agent.Status
	if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil || len(s.Peers) != 1 || s.Peers[0].Handshake == nil || s.Peers[0].Address6 != g.address.String() {
		t.Fatalf("status: exit %d, %v: %s%s", code, err, out, talk)
	}
	t.Logf("the agent has %s resident", resident(t, s.PID))
	code, out, talk = h.form("key", "device", "ls", "--json")
	var devices []device
	if err := json.Unmarshal([]byte(out), &devices); code != 0 || err != nil || len(devices) != 1 || !devices[0].This || devices[0].Key != s.Device || devices[0].MeshKey == "" {
		t.Errorf("devices: exit %d: %s%s", code, out, talk)
	}
}

// kit gives the machine a kit instead of a named key.
func (h *home) kit() {
	h.t.Helper()
	dir := kit.DefaultDir("", os.Getenv)
	key := os.Getenv("FORM_KEY_FILE")
	if err := kit.Save(dir, kit.Config{Owner: stmt.KeyOf(h.owner).String(), KeyFile: key}); err != nil {
		h.t.Fatal(err)
	}
	h.t.Setenv("FORM_KEY_FILE", "")
}

// patient has new connections wait for the mesh as long as it takes.
func patient(t *testing.T) {
	wait, grace := meshWait, meshGrace
	meshWait, meshGrace = time.Minute, time.Minute
	t.Cleanup(func() { meshWait, meshGrace = wait, grace })
}

// A new connection takes the mesh where it answers, and the stream where not; never
// is it an error that there is no mesh.
func TestWays(t *testing.T) {
	const mesh, stream = "by the mesh\n", "by the stream\n"
	for _, c := range []struct {
		name   string
		args   []string
		change func(t *testing.T, h *home, g *meshGuest, id string)
		out    string
		exit   int
		device bool // there is one afterwards
	}{
		{"the mesh answers", nil, nil, mesh, 0, true},
		{"the stream is asked for", []string{"--via", "stream"}, nil, stream, 0, false},
		{"the mesh is asked for", []string{"--via", "mesh"}, nil, mesh, 0, true},
		{"no agent", nil, func(t *testing.T, _ *home, _ *meshGuest, _ string) { t.Setenv("FORM_AGENT", "off") }, stream, 0, false},
		{"no agent, and the mesh is asked for", []string{"--via", "mesh"}, func(t *testing.T, _ *home, _ *meshGuest, _ string) { t.Setenv("FORM_AGENT", "off") }, "", api.ExitUsage, false},
		{"a key that passes by", nil, func(t *testing.T, h *home, _ *meshGuest, _ string) {
			t.Setenv("FORM_KEY_FILE", filepath.Join(h.dir, "owner.key"))
		}, stream, 0, false},
		{"the guest has no key", nil, func(t *testing.T, h *home, _ *meshGuest, id string) {
			if err := h.daemon.SetClaims(context.Background(), []crdt.Claim{{Instance: id, Phase: crdt.ClaimRunning, Ready: true, Generation: 2}}); err != nil {
				t.Fatal(err)
			}
		}, stream, 0, false},
		{"the guest does not answer", nil, func(_ *testing.T, _ *home, g *meshGuest, _ string) { g.cut() }, stream, 0, true},
		{"no agent can start", nil, func(t *testing.T, h *home, _ *meshGuest, _ string) {
			file := filepath.Join(h.dir, "run") // where a folder should be
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(file) })
		}, stream, 0, true},
		{"a way that is none", []string{"--via", "magic"}, nil, "", api.ExitUsage, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHome(t)
			id := h.ships(crdt.Spec{Name: "hello", Replicas: 1})
			g := h.hosts(id)
			h.kit()
			g.serve(t, 8080, mesh)
			h.runtimeDir()
			if c.change != nil {
				c.change(t, h, g, id)
			} else {
				patient(t)
			}
			code, out, talk := h.form(append([]string{"proxy", "hello", "8080"}, c.args...)...)
			if code != c.exit || out != c.out {
				t.Errorf("exit %d, %q, want %d, %q\n%s", code, out, c.exit, c.out, talk)
			}
			_, err := os.Stat(kit.DefaultDir("", os.Getenv).Device())
			if has := err == nil; has != c.device {
				t.Errorf("a device has been made: %v, want %v", has, c.device)
			}
			if n := len(h.daemon.View().Devices(stmt.KeyOf(h.owner))); n > 0 != c.device {
				t.Errorf("the owner lists %d devices", n)
			}
		})
	}
}

// Of a guest that did not answer the agent tells the next form at once; who insists
// on the mesh is told nothing of it.
func TestSilentGuest(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "hello", Replicas: 1})
	g := h.hosts(id)
	h.kit()
	h.runtimeDir()
	g.cut()
	silent := func() bool {
		const stream = "by the stream\n"
		if code, out, talk := h.form("proxy", "hello", "8080"); code != 0 || out != stream {
			t.Fatalf("exit %d, %q\n%s", code, out, talk)
		}
		code, out, talk := h.form("net", "agent", "status", "--json")
		var s agent.Status
		if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil || len(s.Peers) != 1 {
			t.Fatalf("%v: %s%s", err, out, talk)
		}
		return s.Peers[0].Silent
	}
	within := time.Now().Add(time.Minute)
	for !silent() { // a slow machine has not asked often enough
		if time.Now().After(within) {
			t.Fatal("after a minute nobody knows of it")
		}
	}
	wait, grace := meshWait, meshGrace
	meshWait, meshGrace = time.Hour, time.Hour // more than the test has
	t.Cleanup(func() { meshWait, meshGrace = wait, grace })
	if !silent() {
		t.Error("it is forgotten without an answer")
	}
}

// A key that the owner has lent cannot list itself: what has to be done is said.
func TestLentDevice(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "hello", Replicas: 1})
	g := h.hosts(id)
	g.serve(t, 8080, "by the mesh\n")
	lent := testKey(7)
	file := filepath.Join(h.dir, "lent.key")
	if err := keystore.Save(file, lent, nil); err != nil {
		t.Fatal(err)
	}
	key, err := kit.MeshKey(lent)
	if err != nil {
		t.Fatal(err)
	}
	public := key.PublicKey()
	add := []string{"key", "device", "add", stmt.KeyOf(lent).String()}
	if code, _, talk := h.form(add...); code != 0 {
		t.Fatal(talk)
	}
	h.runtimeDir()
	as := func() (int, string, string) {
		t.Setenv("FORM_KEY_FILE", file)
		t.Setenv("FORM_OWNER", stmt.KeyOf(h.owner).String())
		return h.form("proxy", "--via", "mesh", "hello", "8080")
	}
	code, _, talk := as()
	hint := fmt.Sprintf("%s --mesh %x", strings.Join(add[2:], " "), public[:])
	if code != api.ExitNotAllowed || !strings.Contains(talk, hint) {
		t.Errorf("not listed: exit %d, and no %q: %s", code, hint, talk)
	}
	t.Setenv("FORM_KEY_FILE", filepath.Join(h.dir, "owner.key"))
	t.Setenv("FORM_OWNER", "")
	if code, _, talk := h.form(append(add, "--mesh", fmt.Sprintf("%x", public[:]))...); code != 0 {
		t.Fatal(talk)
	}
	if code, out, talk := as(); code != 0 || out != "by the mesh\n" {
		t.Errorf("listed: exit %d, %q: %s", code, out, talk)
	}
	if code, _, talk := h.form("net", "agent", "stop"); code != 0 { // the lent device's
		t.Error(talk)
	}
}

// What nodes say of where they are goes into a file that wg-quick obeys.
func TestEndpoint(t *testing.T) {
	node := stmt.Key{1}
	const good, other = "/ip4/203.0.113.9/udp/5/quic-v1/p2p/12D3KooWBmAwcd4PJNJvfV89HwE48nwkRmAgo8Vy3uQEyNNHBox2", "/ip4/203.0.113.8/tcp/5"
	for _, c := range []struct {
		claim string
		addrs []string
		want  string
	}{
		{"203.0.113.7:51820", nil, "203.0.113.7:51820"}, {"[2001:db8::7]:51820", nil, "[2001:db8::7]:51820"}, {"", nil, ""},
		{"", []string{other, good}, "203.0.113.9:5"}, {"203.0.113.7:0", []string{good}, "203.0.113.9:5"}, {"example.org:5", []string{good}, "203.0.113.9:5"},
		{"203.0.113.7:5\nPostUp = id", nil, ""}, {"[fe80::1%x\nPostUp = id\n]:5", nil, ""}, {"0.0.0.0:5", nil, ""}, {"224.0.0.1:5", nil, ""},
		{"", []string{"/ip4/203.0.113.9/udp/5/quic-v1/p2p-circuit", "/ip6zone/x\nPostUp = id/ip6/fe80::1/udp/5/quic-v1", "", "x"}, ""},
	} {
		p := agent.Peer{Peer: mesh.Peer{Party: policy.Party{Node: node}}, Endpoint: c.claim}
		if got := endpoint(p, []api.Node{{Key: stmt.Key{2}, Addrs: []string{"/ip4/203.0.113.1/udp/1/quic-v1"}}, {Key: node, Addrs: c.addrs}}); got != c.want {
			t.Errorf("%q and %q: %q, want %q", c.claim, c.addrs, got, c.want)
		}
	}
}

func TestDeviceName(t *testing.T) {
	for in, want := range map[string]string{"Olga's MacBook.local": "olga-s-macbook", "host": "host", "---": "", "": "", strings.Repeat("x", 63): strings.Repeat("x", 48), "a.b": "a", "ümlaut": "mlaut"} {
		if got := deviceName(func() (string, error) { return in, nil }); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := deviceName(func() (string, error) { return "x", errors.New("none") }); got != "" {
		t.Errorf("no name: %q", got)
	}
}

// resident is a process's memory, as the kernel says it.
func resident(t *testing.T, pid int) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatal("no VmRSS")
	return ""
}
