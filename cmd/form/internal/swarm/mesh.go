package swarm

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/crdt/stmt"
)

// protoMesh carries WireGuard datagrams where no straight path does (docs/wire.md).
const protoMesh = "wg/1"

// Device is the way of an owner's device to the nodes; it is an [agent.Swarm].
type Device struct {
	*Conn
	Owner stmt.Key
}

// Testimony implements [agent.Swarm].
func (d Device) Testimony(ctx context.Context) (agent.Testimony, error) {
	self, err := d.API().Node(ctx)
	if err != nil {
		return agent.Testimony{}, err
	}
	raws, err := d.API().MeshStatements(ctx, d.Owner)
	return agent.Testimony{Name: self.Network.Name, Root: self.Network.Root, Statements: raws}, err
}

// OpenStream implements [agent.Swarm].
func (d Device) OpenStream(ctx context.Context, host peer.ID) (io.ReadWriteCloser, error) {
	node, err := stmt.KeyOfPeerID(string(host))
	if err != nil {
		return nil, err
	}
	p, err := d.reach(ctx, node)
	if err != nil {
		return nil, err
	}
	s, err := d.node.Open(ctx, p, protoMesh)
	if err != nil {
		d.forget(node)
		return nil, fmt.Errorf("open a stream of the mesh to node %s: %w", node, err)
	}
	return s, nil
}

// Seen implements [agent.Swarm].
func (d Device) Seen(host peer.ID) []netip.AddrPort {
	d.mu.Lock()
	n := d.node
	d.mu.Unlock()
	if n == nil {
		return nil
	}
	for _, p := range n.PeerInfo() {
		if p.ID == host {
			return udpAddrs(p.Addrs)
		}
	}
	return nil
}

// udpAddrs are the UDP addresses among multiaddrs that no relay stands between.
func udpAddrs(addrs []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, text := range addrs {
		a, err := ma.NewMultiaddr(text)
		if err != nil || a.Protocols()[len(a.Protocols())-1].Code == ma.P_CIRCUIT {
			continue
		}
		if at, err := manet.ToNetAddr(a); err == nil && at.Network() == "udp" {
			if p, err := netip.ParseAddrPort(at.String()); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
}
