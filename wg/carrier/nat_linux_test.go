package carrier

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/wg/wgtest"
)

// internet is a public node and two behind NATs of their own; all of it in
// network namespaces of this machine.
type internet struct {
	*world
	public, a, b *node
	natA, natB   *wgtest.Namespace
}

// newInternet makes one whose NATs map ports as masquerade says:  "" keeps them
// where it can, "fully-random" is another for each destination.
func newInternet(t *testing.T, masquerade string) *internet {
	wan := wgtest.NewNamespace(t, "wan")
	routes(wan)
	in := &internet{world: newWorld(t)}
	r := wgtest.NewNamespace(t, "r")
	wgtest.Link(wan, "r", "203.0.113.9/30", r, "eth0", "203.0.113.10/30")
	r.Run("ip", "route", "add", "default", "via", "203.0.113.9")
	in.public = in.at(0, r, "203.0.113.10")
	for i, side := range []struct {
		nat  **wgtest.Namespace
		node **node
	}{{&in.natA, &in.a}, {&in.natB, &in.b}} {
		nat := wgtest.NewNamespace(t, fmt.Sprint("nat", i))
		routes(nat)
		wgtest.Link(wan, fmt.Sprint("nat", i), fmt.Sprintf("203.0.113.%d/30", 1+4*i), nat, "wan0", fmt.Sprintf("203.0.113.%d/30", 2+4*i))
		nat.Run("ip", "route", "add", "default", "via", fmt.Sprintf("203.0.113.%d", 1+4*i))
		nat.NAT("wan0", masquerade)
		host := wgtest.NewNamespace(t, fmt.Sprint("host", i))
		wgtest.Link(nat, "lan0", fmt.Sprintf("10.%d.0.1/24", 1+i), host, "eth0", fmt.Sprintf("10.%d.0.2/24", 1+i))
		host.Run("ip", "route", "add", "default", "via", fmt.Sprintf("10.%d.0.1", 1+i))
		*side.nat, *side.node = nat, in.at(byte(1+i), host, fmt.Sprintf("10.%d.0.2", 1+i))
	}
	in.knowEachOther()
	return in
}

func routes(n *wgtest.Namespace) { n.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward") }

// at makes node n in a namespace.
func (in *internet) at(n byte, ns *wgtest.Namespace, home string) *node {
	in.t.Helper()
	var socket *Socket
	if err := ns.Do(func() (err error) {
		socket, err = Listen(0, netip.Addr{})
		return err
	}); err != nil {
		in.t.Fatal(err)
	}
	return in.join(n, socket, netip.MustParseAddr(home))
}

// Two behind NATs that keep ports punch through: as they need it they ask the
// public node where they are. When UDP is cut they go by the stream, and come back.
func TestPunchedPath(t *testing.T) {
	in := newInternet(t, "")
	in.mu.Lock()
	in.witness = []peer.ID{in.public.id}
	in.mu.Unlock()
	in.a.echo(in.b, 16)
	in.until("both ends send straight", func() bool { return in.a.straight(in.b) && in.b.straight(in.a) })
	for _, p := range in.a.carrier.Paths() {
		if want := p.Host == in.b.id; p.Punched != want || !p.Straight.IsValid() {
			t.Errorf("a reaches %s by %+v", p.Host, p)
		}
	}
	in.a.echo(in.b, 1<<18)
	if !in.a.straight(in.b) {
		t.Error("a bulk transfer left the punched path")
	}
	stop := in.keepBusy(in.a, in.b)
	in.natA.Run("nft", "insert rule ip filter forward meta l4proto udp drop")
	cut := time.Now()
	in.until("both ends have left the path", func() bool { return !in.a.straight(in.b) && !in.b.straight(in.a) })
	t.Logf("left the path after %s", time.Since(cut))
	in.a.echo(in.b, 1<<16)
	in.natA.Run("nft", "flush chain ip filter forward")
	in.natA.Run("nft", "add rule ip filter forward iifname wan0 ct state new drop")
	in.until("both ends are back", func() bool { return in.a.straight(in.b) && in.b.straight(in.a) })
	in.a.echo(in.b, 1<<16)
	stop()
}

// Behind NATs with a port for each destination there is no path: the stream
// carries all.
func TestNoPathBetweenSymmetricNATs(t *testing.T) {
	in := newInternet(t, "fully-random")
	in.a.echo(in.public, 16)
	in.b.echo(in.public, 16)
	in.a.echo(in.b, 1<<16)
	in.until("the public node is reached straight", func() bool { return in.a.straight(in.public) && in.b.straight(in.public) })
	if in.a.straight(in.b) || in.b.straight(in.a) {
		t.Error("a path was found through NATs that have none")
	}
}

// keepBusy has a send datagrams to b, which b refuses, until stop is called.
func (in *internet) keepBusy(a, b *node) (stop func()) {
	in.t.Helper()
	c, err := a.net.DialUDPAddrPort(netip.AddrPort{}, netip.AddrPortFrom(b.address, 9))
	if err != nil {
		in.t.Fatal(err)
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, _ = c.Write([]byte("busy")) // that nobody listens is told here
			select {
			case <-ended:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() {
		close(ended)
		<-done
		c.Close()
	}
}
