package p2p

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// maxThrough is through how many members, to which there is a connection, a peer
// is dialled beside its own addresses.
const maxThrough = 3

// findTimeout bounds the search for the addresses of a peer that may be reached
// through a member in any case.
const findTimeout = 3 * time.Second

// startRelay makes the node relay between members, from the start: the library's
// own service waits until others have dialled back, which takes minutes, and in a
// small network for ever.
func (n *Node) startRelay() (err error) {
	n.relayed = newRelayMeter(n.tune.relayEach, n.tune.relayAll, time.Now)
	metered := &meteredHost{Host: n.inner, ctx: n.ctx, meter: n.relayed}
	if n.relay, err = relay.New(metered, relay.WithResources(relayResources()), relay.WithACL(relayACL{n.gate}), relay.WithMetricsTracer(n.relayed)); err != nil {
		return fmt.Errorf("p2p: start relay: %w", err)
	}
	return nil
}

// watchNAT has the node reserve a place at relays as soon as it seems to be behind
// a NAT: it has no public address, and reached a member at one. Whether it is can
// be found out later; reservations are cheap, and without one nobody reaches it.
func (n *Node) watchNAT(ctx context.Context) error {
	bus := n.inner.EventBus()
	sub, err := bus.Subscribe([]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated)})
	if err != nil {
		return err
	}
	defer sub.Close() // its error is that the bus has closed already
	tell, err := bus.Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful)
	if err != nil {
		return err
	}
	defer tell.Close() // likewise
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sub.Out():
		case <-n.joined:
		}
		if n.seemsBehindNAT() {
			return tell.Emit(event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate})
		}
	}
}

func (n *Node) seemsBehindNAT() bool {
	if len(n.cfg.Announce) > 0 {
		return false
	}
	bound, err := n.inner.Network().InterfaceListenAddresses()
	if err != nil || slices.ContainsFunc(bound, manet.IsPublicAddr) {
		return false
	}
	return slices.ContainsFunc(n.gate.admitted(), func(a admittedPeer) bool {
		return !a.client && supportsRelay(n.inner, a.id) && slices.ContainsFunc(a.conns, func(c network.Conn) bool {
			return c.Stat().Direction == network.DirOutbound && !isRelayed(c) && manet.IsPublicAddr(c.RemoteMultiaddr())
		})
	})
}

// Outside returns the admitted nodes that this one has reached without help, those
// at public addresses first: whoever is behind a NAT is seen by them from outside,
// and may be reached through them.
func (n *Node) Outside() []peer.ID {
	var far, near []peer.ID
	for _, a := range n.gate.admitted() {
		i := slices.IndexFunc(a.conns, func(c network.Conn) bool {
			return c.Stat().Direction == network.DirOutbound && !isRelayed(c)
		})
		switch {
		case i < 0 || a.client:
		case manet.IsPublicAddr(a.conns[i].RemoteMultiaddr()):
			far = append(far, a.id)
		default:
			near = append(near, a.id)
		}
	}
	return append(far, near...)
}

// relayCandidates offers those of Outside that relay, for a node that finds itself
// behind a NAT.
func (n *Node) relayCandidates(ctx context.Context, want int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, max(want, 0))
	defer close(out)
	for _, p := range n.Outside() {
		if len(out) == cap(out) {
			break
		}
		if supportsRelay(n.inner, p) {
			out <- n.inner.Peerstore().PeerInfo(p)
		}
	}
	return out
}

// through returns circuits to a peer by members to which there is a connection.
func through(h host.Host, g *gate, to peer.ID) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, a := range g.admitted() {
		if len(out) == maxThrough {
			break
		}
		direct := slices.ContainsFunc(a.conns, func(c network.Conn) bool { return !isRelayed(c) })
		if a.client || a.id == to || !direct || !supportsRelay(h, a.id) {
			continue
		}
		circuit, err := ma.NewMultiaddr("/p2p/" + a.id.String() + "/p2p-circuit")
		if err == nil {
			out = append(out, circuit)
		}
	}
	return out
}

// isWhole says whether an address says how to reach somebody, and not only through
// whom.
func isWhole(a ma.Multiaddr) bool { return len(a) > 0 && a[0].Protocol().Code != ma.P_P2P }
