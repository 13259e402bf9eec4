package p2p

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// swallower forwards TCP connections, and once it swallows, nothing: neither side
// hears of their end.
type swallower struct {
	net.Listener
	swallows atomic.Bool
}

func newSwallower(t *testing.T, to string) *swallower {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &swallower{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				return
			}
			go s.carry(in, out)
			go s.carry(out, in)
		}
	}()
	return s
}

func (s *swallower) carry(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if s.swallows.Load() {
			_, _ = io.Copy(io.Discard, from) // until its own side gives it up
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// A node that slept finds out at once which of its connections are dead, and has
// new ones long before they would time out; those that live stay.
func TestRecheckReplacesDeadConnections(t *testing.T) {
	a, _ := start(t, nil)
	c, _ := start(t, nil)
	real, err := ma.NewMultiaddr(tcpAddr(t, a))
	if err != nil {
		t.Fatal(err)
	}
	port, err := real.ValueForProtocol(ma.P_TCP)
	if err != nil {
		t.Fatal(err)
	}
	road := newSwallower(t, "127.0.0.1:"+port)
	_, roadPort, err := net.SplitHostPort(road.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := start(t, func(cfg *Config) {
		cfg.tune.answer = 3 * time.Second
		cfg.Bootstrap = []string{"/ip4/127.0.0.1/tcp/" + roadPort + "/p2p/" + a.ID().String(), tcpAddr(t, c)}
	})
	eventually(t, "both peers", func() bool { return len(b.Peers()) == 2 })
	over := func(p peer.ID) (conns []network.Conn) { return b.inner.Network().ConnsToPeer(p) }
	dead := func(p peer.ID) bool { // all connections lead over the road
		for _, c := range over(p) {
			if port, err := c.RemoteMultiaddr().ValueForProtocol(ma.P_TCP); err != nil || port != roadPort {
				return false
			}
		}
		return len(over(p)) > 0
	}
	if !dead(a.ID()) {
		t.Fatal("a and b are connected beside the road")
	}
	kept := over(c.ID())[0]

	road.swallows.Store(true)
	b.Recheck()
	eventually(t, "a connection that lives", func() bool {
		for _, c := range over(a.ID()) {
			if _, err := answers(ctxT(t), c, 1); err == nil {
				return len(b.Peers()) == 2
			}
		}
		return false
	})
	if dead(a.ID()) {
		t.Error("the dead connection is left")
	}
	if kept.IsClosed() {
		t.Error("a connection that lives was closed")
	}
}

// However often a peer could not be reached, it is dialled at once after a sleep.
func TestHurryForgetsBackoff(t *testing.T) {
	b := testBook(someone(1))
	for range 6 {
		b.failed(someone(1).ID, t0, false)
	}
	if dial, _ := b.plan(t0); len(dial) != 0 {
		t.Fatalf("due after failures: %v", dial)
	}
	b.hurry(t0)
	if dial, _ := b.plan(t0); len(dial) != 1 || dial[0].ID != someone(1).ID {
		t.Fatalf("due after a sleep: %v", dial)
	}
}
