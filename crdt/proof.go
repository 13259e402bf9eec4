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
	list := slices.SortedFunc(slices.Values(s.byDoc[id]), func(a, b *claimReg) int {
		return cmp.Or(a.key.node.Compare(b.key.node), cmp.Compare(a.key.slot, b.key.slot), a.key.owner.Compare(b.key.owner))
	})
	var admissions, claims [][]byte
	for i, c := range list {
		if !c.gone {
			claims = append(claims, c.raw)
		}
		node := c.key.node
		if i > 0 && list[i-1].key.node == node {
			continue
		}
		for _, ak := range slices.SortedFunc(maps.Keys(s.members.admitted[node]), compareAdmits) {
			if ak.role == stmt.RoleNode {
				admissions = append(admissions, s.members.admitted[node][ak].raw)
			}
		}
	}
	return append(admissions, claims...)
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
