package mesh

import (
	"math"
	"net/netip"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
)

// identity is what the guest's own addresses follow from.
func (p Pin) identity() []byte {
	return policy.Party{Instance: p.Instance, Slot: p.Slot, Node: p.Node}.Identity()
}

// addresses are those of the guest and of its peers: the IPv6 address that is
// somebody's own, and of IPv4 what was claimed by who may, each one's once. rank
// orders nodes by when the network admitted them. Devices claim nothing: each has its
// first candidate, unless somebody else does.
func addresses(space wg.Space, pin Pin, own crdt.Claim, parties []policy.Party, rank func(stmt.Key) uint64) (self []netip.Addr, peers [][]netip.Addr) {
	all := []policy.Party{{Instance: pin.Instance, Slot: pin.Slot, Node: pin.Node}}
	if a, err := netip.ParseAddr(own.Address); err == nil {
		all[0].Address4 = a
	}
	all = append(all, parties...)
	claims := make([]wg.Claim, len(all))
	for i, p := range all {
		claims[i] = wg.Claim{Address: p.Address4, Identity: p.Identity(), Admitted: rank(p.Node)}
		if !p.Device.IsZero() {
			all[i].Address4 = space.Candidate4(p.Identity(), 0)
			claims[i].Address, claims[i].Admitted = all[i].Address4, math.MaxUint64
		}
	}
	won := space.Resolve(claims)
	for i, p := range all {
		as := []netip.Addr{space.Address6(p.Identity())}
		if w, ok := won[p.Address4]; ok && w == i {
			as = append(as, p.Address4)
		}
		peers = append(peers, as)
	}
	return peers[0], peers[1:]
}

// peersOf are parties as the device is to have them; where says at what address
// of the host's each is.
func peersOf(parties []policy.Party, addresses [][]netip.Addr, where map[wg.Key]netip.AddrPort) []wg.Peer {
	out := make([]wg.Peer, len(parties))
	for i, p := range parties {
		at := where[wg.Key(p.Key)]
		out[i] = wg.Peer{Key: wg.Key(p.Key), Addresses: addresses[i], Endpoint: at, Fixed: at.IsValid()}
	}
	return out
}
