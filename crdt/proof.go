package crdt

import (
	"cmp"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// ClaimStatements returns the raw claims on an instance with the admissions of
// the nodes that made them, in an order in which they can be applied: what proves
// to anybody who runs it. The byte slices are shared; do not modify them.
func (s *State) ClaimStatements(id DocID) [][]byte {
	claims, nodes := s.claimsOn(id)
	return append(s.admissionsOf(nodes, stmt.RoleNode), claims...)
}

// MeshStatements returns what proves to anybody whom an owner's devices and
// replicas may talk to: what admits the owner, its owner statements and specs, and
// the claims on its instances with the admissions of the nodes that made them, in
// an order in which they can be applied. The byte slices are shared; do not modify
// them.
func (s *State) MeshStatements(owner stmt.Key) [][]byte {
	out := s.admissionsOf([]stmt.Key{owner}, stmt.RoleOwner, stmt.RoleOperator)
	if s.members.wildcard.raw != nil {
		out = append(out, s.members.wildcard.raw)
	}
	if o := s.owners[owner]; o != nil {
		for _, id := range slices.SortedFunc(maps.Keys(o.stmts), stmt.ID.Compare) {
			out = append(out, o.stmts[id].raw)
		}
	}
	var claims [][]byte
	nodes := map[stmt.Key]bool{}
	for _, d := range slices.SortedFunc(maps.Keys(s.docsOf[owner]), compareDocs) {
		for _, r := range s.docs[d].held() {
			out = append(out, r.raw)
		}
		raws, by := s.claimsOn(d)
		claims = append(claims, raws...)
		for _, n := range by {
			nodes[n] = true
		}
	}
	out = append(out, s.admissionsOf(slices.SortedFunc(maps.Keys(nodes), stmt.Key.Compare), stmt.RoleNode)...)
	return append(out, claims...)
}

// claimsOn returns the raw claims on an instance and who made them, each once.
func (s *State) claimsOn(id DocID) (claims [][]byte, nodes []stmt.Key) {
	list := slices.SortedFunc(slices.Values(s.byDoc[id]), func(a, b *claimReg) int {
		return cmp.Or(a.key.node.Compare(b.key.node), cmp.Compare(a.key.slot, b.key.slot), a.key.owner.Compare(b.key.owner))
	})
	for _, c := range list {
		if !c.gone {
			claims = append(claims, c.raw)
		}
		nodes = append(nodes, c.key.node)
	}
	return claims, slices.Compact(nodes)
}

// admissionsOf returns what admits keys to any of roles.
func (s *State) admissionsOf(keys []stmt.Key, roles ...stmt.Role) [][]byte {
	var out [][]byte
	for _, key := range keys {
		for _, ak := range slices.SortedFunc(maps.Keys(s.members.admitted[key]), compareAdmits) {
			if slices.Contains(roles, ak.role) {
				out = append(out, s.members.admitted[key][ak].raw)
			}
		}
	}
	return out
}

func compareAdmits(a, b admitKey) int {
	return cmp.Or(cmp.Compare(a.role, b.role), a.invite.Compare(b.invite))
}

// ClaimStatements is State.ClaimStatements; none for what is no instance ID.
func (r *Replica) ClaimStatements(id string) [][]byte {
	doc, err := ParseDocID(id)
	if err != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.ClaimStatements(doc)
}

// MeshStatements is [State.MeshStatements].
func (r *Replica) MeshStatements(owner stmt.Key) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.MeshStatements(owner)
}
