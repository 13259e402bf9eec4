package mesh

import (
	"net/netip"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/wg"
)

// Swarm is what is known of everybody; *crdt.View is one.
type Swarm interface {
	policy.Claims
	policy.Fleet
	Instances() []crdt.Spec
}

// Book says who is on the mesh, and who has which address. It never changes.
type Book struct {
	space    wg.Space
	specs    []crdt.Spec
	replicas map[string][]policy.Party // by instance
	nodes    []policy.Party
	owner    map[netip.Addr]string // identity of who has an IPv4 address
}

// NewBook finds out who has which address: of all that claim one, who may, and was
// admitted first.
func NewBook(v Swarm, space wg.Space) *Book {
	b := &Book{space: space, specs: v.Instances(), nodes: policy.Nodes(v)}
	b.replicas = make(map[string][]policy.Party, len(b.specs))
	var claims []wg.Claim
	claim := func(parties []policy.Party) {
		for _, p := range parties {
			if p.Address4.IsValid() {
				claims = append(claims, wg.Claim{Address: p.Address4, Identity: p.Identity(), Admitted: v.Rank(p.Node)})
			}
		}
	}
	for i := range b.specs {
		id := b.specs[i].ID
		b.replicas[id] = policy.Replicas(v, b.specs[i])
		claim(b.replicas[id])
	}
	claim(b.nodes)
	b.owner = make(map[netip.Addr]string, len(claims))
	for at, i := range space.Resolve(claims) { // any order: an address is in it once
		b.owner[at] = string(claims[i].Identity)
	}
	return b
}

// Instances are all of them, by ID.
func (b *Book) Instances() []crdt.Spec { return b.specs }

// Replicas are those of an instance whose claims count.
func (b *Book) Replicas(spec *crdt.Spec) []policy.Party { return b.replicas[spec.ID] }

// Nodes are those that are on the mesh, by key.
func (b *Book) Nodes() []policy.Party { return b.nodes }

// Addresses are a party's own; the zero Addr: it has none of that kind.
func (b *Book) Addresses(p policy.Party) (a4, a6 netip.Addr) {
	id := p.Identity()
	if has, ok := b.owner[p.Address4]; ok && has == string(id) {
		a4 = p.Address4
	}
	return a4, b.space.Address6(id)
}

// Taken says whether somebody else than the identity has an address.
func (b *Book) Taken(at netip.Addr, identity []byte) bool {
	has, ok := b.owner[at]
	return ok && has != string(identity)
}
