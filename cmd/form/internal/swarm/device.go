package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

// protoMesh carries WireGuard datagrams where no straight path does (docs/wire.md).
const protoMesh = "wg/1"

// giveUp is after how many answers in a row that did not come a [Device] looks for
// another way to the swarm.
const giveUp = 3

// Device is the way of an owner's device to the nodes, for as long as it lasts: it
// finds a new one when the old one ends. It is an [agent.Swarm].
type Device struct {
	owner stmt.Key
	dial  func(context.Context) (*Conn, error)

	finding sync.Mutex // held while a way is looked for
	mu      sync.Mutex
	conn    *Conn // nil: there is none
	failed  int   // answers in a row
}

// NewDevice makes a Device of an owner that finds its ways by dial.
func NewDevice(owner stmt.Key, dial func(context.Context) (*Conn, error)) *Device {
	return &Device{owner: owner, dial: dial}
}

// Close ends the present way.
func (d *Device) Close() error {
	d.mu.Lock()
	c := d.conn
	d.conn, d.failed = nil, 0
	d.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close()
}

func (d *Device) now() *Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn
}

// way is the present way, found if there is none.
func (d *Device) way(ctx context.Context) (*Conn, error) {
	d.finding.Lock()
	defer d.finding.Unlock()
	if c := d.now(); c != nil {
		return c, nil
	}
	c, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = c
	return c, nil
}

// judge counts answers, and gives up a way that has none.
func (d *Device) judge(c *Conn, err error) error {
	d.mu.Lock()
	if d.failed++; err == nil || d.conn != c {
		d.failed = 0
	}
	over := d.failed >= giveUp
	d.mu.Unlock()
	if over {
		err = errors.Join(err, d.Close())
	}
	return err
}

// Testimony implements [agent.Swarm].
func (d *Device) Testimony(ctx context.Context) (agent.Testimony, error) {
	c, err := d.way(ctx)
	if err != nil {
		return agent.Testimony{}, err
	}
	t, err := Testimony(ctx, c.API(), d.owner)
	return t, d.judge(c, err)
}

// Testimony is what a node says of an owner's mesh.
func Testimony(ctx context.Context, node *api.Client, owner stmt.Key) (t agent.Testimony, err error) {
	self, err := node.Node(ctx)
	if err != nil {
		return t, err
	}
	t.Name, t.Root = self.Network.Name, self.Network.Root
	t.Statements, err = node.MeshStatements(ctx, owner)
	return t, err
}

// OpenStream implements [agent.Swarm].
func (d *Device) OpenStream(ctx context.Context, host peer.ID) (io.ReadWriteCloser, error) {
	node, err := stmt.KeyOfPeerID(string(host))
	if err != nil {
		return nil, err
	}
	c, err := d.way(ctx)
	if err != nil {
		return nil, err
	}
	p, err := c.reach(ctx, node)
	if err != nil {
		return nil, err
	}
	s, err := c.node.Open(ctx, p, protoMesh)
	if err != nil {
		c.forget(node)
		return nil, fmt.Errorf("open a stream of the mesh to node %s: %w", node, err)
	}
	return s, nil
}

// Seen implements [agent.Swarm].
func (d *Device) Seen(host peer.ID) []netip.AddrPort {
	n := d.node()
	if n == nil {
		return nil
	}
	for _, p := range n.PeerInfo() {
		if p.ID == host {
			return UDPAddrs(p.Addrs)
		}
	}
	return nil
}

// Outside implements [agent.Swarm].
func (d *Device) Outside() []peer.ID {
	if n := d.node(); n != nil {
		return n.Outside()
	}
	return nil
}

// node is the present way's libp2p node; nil: there is none.
func (d *Device) node() *p2p.Node {
	c := d.now()
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node
}

// UDPAddrs are the UDP addresses among multiaddrs at which QUIC listens with no relay
// between, in their order.
func UDPAddrs(addrs []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, text := range addrs {
		a, err := ma.NewMultiaddr(text)
		if err != nil || len(a) < 3 || a[0].Code() != ma.P_IP4 && a[0].Code() != ma.P_IP6 || a[1].Code() != ma.P_UDP || a[2].Code() != ma.P_QUIC_V1 ||
			slices.ContainsFunc(a, func(c ma.Component) bool { return c.Code() == ma.P_CIRCUIT }) {
			continue
		}
		if at, err := netip.ParseAddrPort(net.JoinHostPort(a[0].Value(), a[1].Value())); err == nil {
			out = append(out, at)
		}
	}
	return out
}
