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
	keys := slices.SortedFunc(maps.Keys(s.byDoc[id]), func(a, b claimKey) int {
		return cmp.Or(a.node.Compare(b.node), cmp.Compare(a.slot, b.slot), a.owner.Compare(b.owner))
	})
	var admissions, claims [][]byte
	for i, k := range keys {
		if c := s.claims[k]; !c.gone {
			claims = append(claims, c.raw)
		}
		if i > 0 && keys[i-1].node == k.node {
			continue
		}
		for _, ak := range slices.SortedFunc(maps.Keys(s.members.admitted[k.node]), compareAdmits) {
			if ak.role == stmt.RoleNode {
				admissions = append(admissions, s.members.admitted[k.node][ak].raw)
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
