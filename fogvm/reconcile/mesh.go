package reconcile

import (
	"net/netip"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/wg"
)

// GuestMesh is the mesh of which the guests here are peers.
type GuestMesh struct {
	Network string   // its name
	Root    stmt.Key // zero: an open network
	stmt.Settings
	Space wg.Space
	// Endpoint returns where guests here can be reached from elsewhere, by UDP; the
	// zero value: not known.
	Endpoint func() netip.AddrPort
}

// guest is the place of a guest of s on the mesh; nil: there is no mesh.
func (m *GuestMesh) guest(s *crdt.Spec, self stmt.Key) *guest.MeshConfig {
	if m == nil {
		return nil
	}
	return &guest.MeshConfig{Network: m.Network, Root: m.Root, Settings: m.Settings, Owner: s.Owner, Node: self}
}

// address fills in where the guests of claims are on the mesh, those that have a
// key: what follows from who they are, and the IPv4 address that is theirs to
// claim. One that another has by right is given up. rank orders nodes by when the
// network admitted them.
func (m *GuestMesh) address(rank func(node stmt.Key) uint64, w plan.World, self stmt.Key, claims []crdt.Claim) {
	if m == nil {
		for i := range claims {
			claims[i].MeshKey, claims[i].Address, claims[i].Address6, claims[i].Endpoint = "", "", "", ""
		}
		return
	}
	endpoint := ""
	if at := m.Endpoint(); at.IsValid() {
		endpoint = at.String()
	}
	var taken *rivals
	for i := range claims {
		c := &claims[i]
		if c.MeshKey == "" {
			c.Address, c.Address6, c.Endpoint = "", "", ""
			continue
		}
		if taken == nil {
			taken = m.rivals(rank, w, self, claims)
		}
		id := policy.Party{Node: self, Instance: c.Instance, Slot: c.Slot}.Identity()
		has, err := netip.ParseAddr(c.Address)
		if err != nil {
			has = netip.Addr{}
		}
		c.Address, c.Address6, c.Endpoint = "", m.Space.Address6(id).String(), endpoint
		if a, ok := m.Space.Choose(id, has, func(a netip.Addr) bool { return taken.have(a, id) }); ok {
			c.Address = a.String()
			taken.mine[a] = true
		}
	}
}

// rivals are the claims of others to addresses that guests here may claim.
type rivals struct {
	space  wg.Space
	rank   uint64 // of this node
	claims map[netip.Addr][]wg.Claim
	mine   map[netip.Addr]bool // chosen already
}

// rivals looks through the claims on all instances, and those of nodes.
func (m *GuestMesh) rivals(rank func(stmt.Key) uint64, w plan.World, self stmt.Key, claims []crdt.Claim) *rivals {
	r := &rivals{space: m.Space, rank: rank(self), claims: map[netip.Addr][]wg.Claim{}, mine: map[netip.Addr]bool{}}
	could := map[string]bool{}
	for _, c := range claims {
		id := policy.Party{Node: self, Instance: c.Instance, Slot: c.Slot}.Identity()
		for i := range wg.Candidates {
			could[m.Space.Candidate4(id, i).String()] = true
		}
	}
	for id, all := range w.Claims { // any order: of rivals the order does not matter
		for _, c := range all {
			if c.Node != self && could[c.Address] {
				r.add(c.Address, policy.Party{Node: c.Node, Instance: id, Slot: c.Slot}, rank(c.Node))
			}
		}
	}
	for _, n := range w.Nodes {
		if n.Address4.IsValid() && could[n.Address4.String()] {
			r.add(n.Address4.String(), policy.Party{Node: n.Key}, rank(n.Key))
		}
	}
	return r
}

func (r *rivals) add(address string, p policy.Party, rank uint64) {
	a := netip.MustParseAddr(address) // it is one of ours, as text
	r.claims[a] = append(r.claims[a], wg.Claim{Address: a, Identity: p.Identity(), Admitted: rank})
}

// have says whether somebody else has an address that identity could claim.
func (r *rivals) have(a netip.Addr, identity []byte) bool {
	if r.mine[a] {
		return true
	}
	all := append([]wg.Claim{{Address: a, Identity: identity, Admitted: r.rank}}, r.claims[a]...)
	return r.space.Resolve(all)[a] != 0
}
