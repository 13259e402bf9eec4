package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/p2p/fair"
	"github.com/formthefog/formation/wg/carrier"
)

func TestMeshKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.key")
	if _, err := loadMeshKey(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := loadMeshKey(path); api.ExitOf(err) != api.ExitNotAllowed {
		t.Errorf("a key that the group may read: %v", err)
	}
	path = filepath.Join(t.TempDir(), "mesh.key")
	if err := os.WriteFile(path, []byte("AAAA"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadMeshKey(path); api.ExitOf(err) != api.ExitFailed {
		t.Errorf("what is no key: %v", err)
	}
}

func TestSharedPort(t *testing.T) {
	const tcp, quic, other = "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip6/::1/udp/7/quic-v1"
	for _, c := range []struct {
		listen []string
		port   int
		at     string
		want   uint16
		quics  int
		after  string // with 9 for a free port
	}{
		{[]string{tcp, quic}, 0, "127.0.0.1", 0, 1, "/ip4/127.0.0.1/tcp/9 /ip4/127.0.0.1/udp/9/quic-v1"},
		{[]string{tcp, quic}, 9, "127.0.0.1", 9, 1, "/ip4/127.0.0.1/tcp/9 /ip4/127.0.0.1/udp/9/quic-v1"},
		{[]string{tcp, other}, 0, "::1", 7, 1, tcp + " " + other},
		{[]string{other, quic}, 0, "::1", 7, 2, other + " " + quic},
		{[]string{tcp}, 0, "127.0.0.1", 0, 0, tcp},
		{[]string{tcp}, 5, "127.0.0.1", 5, 0, tcp},
	} {
		s, quics := findShare(c.listen, c.port)
		if s.at != netip.MustParseAddr(c.at) || s.port != c.want || quics != c.quics {
			t.Errorf("%v: %+v, %d QUIC addresses", c.listen, s, quics)
		}
		if got := strings.Join(s.onPort(c.listen, 9), " "); got != c.after {
			t.Errorf("%v becomes %s, want %s", c.listen, got, c.after)
		}
	}
}

func TestUDPAddresses(t *testing.T) {
	got := udpAddrs([]string{
		"/ip4/192.0.2.1/tcp/5", "/ip4/192.0.2.1/udp/5/quic-v1/p2p/x", "/ip6/2001:db8::1/udp/6/quic-v1",
		"/ip4/192.0.2.2/udp/5/quic-v1/p2p/x/p2p-circuit/p2p/y", "/dns4/example.org/udp/5/quic-v1", "/ip6zone/eth0/ip6/fe80::1/udp/5/quic-v1", "",
	})
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:5"), netip.MustParseAddrPort("[2001:db8::1]:6")}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Only who stays by right gets a stream of the mesh, and not without end.
func TestMeshStreamsAreBounded(t *testing.T) {
	m := &mesh{places: fair.New(1, 1)}
	if m.places.Enter("a", func() {}) == nil {
		t.Fatal("no place at all")
	}
	for _, stays := range []bool{true, false} {
		var refused []error
		h := m.handler(func(peer.ID) bool { return stays }, func(_ peer.ID, _ string, err error) { refused = append(refused, err) })
		ours, theirs := net.Pipe()
		h(t.Context(), "a", theirs)
		if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("stays %v: the stream goes on: %v", stays, err)
		}
		if (len(refused) == 1) != stays {
			t.Errorf("stays %v: refused: %v", stays, refused)
		}
	}
}

// meshed is a client that has a carrier, as the agent of form has.
type meshed struct {
	*client
	socket  *carrier.Socket
	carrier *carrier.Carrier
}

func newMeshed(t *testing.T, c *client) *meshed {
	t.Helper()
	socket, err := carrier.Listen(0, netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	out := &meshed{client: c, socket: socket}
	out.carrier, err = carrier.New(carrier.Config{Socket: socket, Streams: meshStreams{c.node}, Now: boottime.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- out.carrier.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, socket.Close()); err != nil {
			t.Error(err)
		}
	})
	return out
}

// A client of an owner that the network admits finds a straight path to a node's
// one port, which is QUIC's.
func TestClientReachesTheMeshPort(t *testing.T) {
	p := newProc(t, "--accept", "any").start()
	self, err := p.local.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, stmt.NewNetworkID(self.Network.Name, self.Network.Root))
	c.to(p)
	m := newMeshed(t, c)
	host := peer.ID(p.key.PeerID())
	m.carrier.Hosts([]peer.ID{host})
	m.carrier.Stations([32]byte{}, map[string]carrier.Station{"it": {Public: [32]byte{1}, Deliver: func([]byte, netip.AddrPort) {}}})
	quic := udpAddrs(p.addrs)
	within(t, 20*time.Second, "a straight path", func() error {
		initiation := make([]byte, 148)
		initiation[0] = 1
		m.carrier.Send("it", initiation, carrier.Address(host))
		paths := m.carrier.Paths()
		if len(paths) != 1 || len(quic) != 1 || paths[0].Straight != quic[0] || paths[0].Punched || !paths[0].Stream || paths[0].Relayed {
			return errors.New(strings.TrimSpace(strings.Join(p.addrs, " ")))
		}
		return nil
	})
}
