package mesh

import (
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
)

// Peer is a party with the addresses that are its own.
type Peer struct {
	policy.Party
	Host     peer.ID    // through which it is reached; "": it comes by itself
	Address6 netip.Addr // its own by its identity
	Address4 netip.Addr // what it claims and nobody has more right to; the zero Addr: none
}

// Peers gives parties what is their own.
func (b *Book) Peers(parties []policy.Party) []Peer {
	out := make([]Peer, len(parties))
	for i, p := range parties {
		out[i].Party = p
		out[i].Address4, out[i].Address6 = b.Addresses(p)
		if !p.Node.IsZero() {
			out[i].Host = peer.ID(p.Node.PeerID())
		}
	}
	return out
}

// Wanted is peers as a device takes them.
func Wanted(peers []Peer) []wg.Peer {
	out := make([]wg.Peer, len(peers))
	for i, p := range peers {
		out[i] = wg.Peer{Key: wg.Key(p.Key), Addresses: []netip.Addr{p.Address6}}
		if p.Address4.IsValid() {
			out[i].Addresses = append(out[i].Addresses, p.Address4)
		}
		if p.Host != "" {
			// Wherever the host is, and without a keepalive: the carrier keeps holes.
			out[i].Endpoint, out[i].Fixed = carrier.Address(p.Host), true
		}
	}
	return out
}

// Hosts are those through which peers are reached, each once.
func Hosts(peers []Peer) []peer.ID {
	var out []peer.ID
	seen := map[peer.ID]bool{"": true}
	for _, p := range peers {
		if !seen[p.Host] {
			seen[p.Host] = true
			out = append(out, p.Host)
		}
	}
	return out
}

// Claim4 is the IPv4 address that a node should claim, which has this one: the
// first of its candidates that nobody has more right to. The zero Addr: there is
// none.
func (b *Book) Claim4(node stmt.Key, has netip.Addr) netip.Addr {
	self := policy.Party{Node: node}.Identity()
	a, ok := b.space.Choose(self, has, func(a netip.Addr) bool { return b.Taken(a, self) })
	if !ok {
		return netip.Addr{}
	}
	return a
}
