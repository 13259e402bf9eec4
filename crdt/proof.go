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

// MeshStatements returns what proves to anybody who knows the network's root whom
// an owner's devices and replicas may talk to: the admissions of the owner and of
// the nodes with claims on its instances, what takes those out, the revocations of
// other nodes, of which somebody may tell old claims, up to [MaxRevocations], what
// the owner says of its instances and devices, and the claims, in an order in which
// they can be applied. The byte slices are shared; do not modify them.
func (s *State) MeshStatements(owner stmt.Key) [][]byte {
	var claims, specs [][]byte
	who := []stmt.Key{owner}
	for _, id := range slices.SortedFunc(maps.Keys(s.docsOf[owner]), compareDocs) {
		for _, r := range s.docs.get(id).held() {
			specs = append(specs, r.raw)
		}
		for _, c := range slices.SortedFunc(slices.Values(s.byDoc.get(id)), compareRegs) {
			if c.key.owner == owner && !c.gone {
				claims, who = append(claims, c.raw), append(who, c.key.node)
			}
		}
	}
	var out [][]byte
	if r := s.members.wildcard; r.raw != nil {
		out = append(out, r.raw)
	}
	slices.SortFunc(who, stmt.Key.Compare)
	who = slices.Compact(who)
	for _, key := range who {
		out = append(out, s.members.about(key)...)
	}
	out = append(out, s.members.revocations(who)...)
	if o := s.owners[owner]; o != nil {
		for _, id := range slices.SortedFunc(maps.Keys(o.stmts), stmt.ID.Compare) {
			out = append(out, o.stmts[id].raw)
		}
	}
	return append(append(out, specs...), claims...)
}

// DeviceStatements is MeshStatements, and what proves which nodes are the owner's, as
// a device wants to know: their admissions and registers.
func (s *State) DeviceStatements(owner stmt.Key) [][]byte {
	var nodes []stmt.Key
	for _, d := range s.devicesOf(owner) {
		if d.Node {
			nodes = append(nodes, d.Key)
		}
	}
	for k, op := range s.members.operator { // any order: sorted below
		if op == owner {
			nodes = append(nodes, k)
		}
	}
	slices.SortFunc(nodes, stmt.Key.Compare)
	nodes = slices.Compact(nodes)
	out := s.MeshStatements(owner)
	for _, k := range nodes[:min(len(nodes), MaxOwnNodes)] {
		if r := s.nodes.get(k); r != nil {
			out = append(append(out, s.members.about(k)...), r.raw)
		}
	}
	return out
}

// about returns the held statements about a key's membership.
func (m *memberState) about(key stmt.Key) [][]byte {
	var out [][]byte
	for _, ak := range slices.SortedFunc(maps.Keys(m.admitted[key]), compareAdmits) {
		out = append(out, m.admitted[key][ak].raw)
	}
	for _, role := range []stmt.Role{"", stmt.RoleNode, stmt.RoleOperator, stmt.RoleOwner} {
		if r, ok := m.revokes[revokeKey{key, role}]; ok {
			out = append(out, r.raw)
		}
	}
	if r, ok := m.disowned[key]; ok {
		out = append(out, r.raw)
	}
	return out
}

// MaxRevocations is how many revocations of nodes without claims there are among
// MeshStatements.
const MaxRevocations = 1024

// revocations returns those of nodes, but of the keys told.
func (m *memberState) revocations(told []stmt.Key) (out [][]byte) {
	var keys []revokeKey
	for k := range m.revokes {
		if _, known := slices.BinarySearchFunc(told, k.key, stmt.Key.Compare); !known && (k.role == "" || k.role == stmt.RoleNode) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b revokeKey) int {
		return cmp.Or(a.key.Compare(b.key), cmp.Compare(a.role, b.role))
	})
	for _, k := range keys[:min(len(keys), MaxRevocations)] {
		out = append(out, m.revokes[k].raw)
	}
	return out
}

// Lasting is what the state holds but for claims, which say what is and not what
// was decided: whoever keeps it is not made to believe the past.
func (s *State) Lasting() (out [][]byte) {
	for _, raw := range s.Held() {
		if st, err := stmt.Reread(raw); err == nil && st.Kind != stmt.KindClaim {
			out = append(out, raw)
		}
	}
	return out
}

// Concerns says whether st can be one of owner's MeshStatements, by its kind and
// by whose instances it is about. It does not say that it is true.
func Concerns(st *stmt.Statement, owner stmt.Key) bool {
	switch st.Kind {
	case stmt.KindMember:
		return true
	case stmt.KindOwner, stmt.KindSpec:
		return OwnerOf(st) == owner
	case stmt.KindClaim:
		b, err := decodeClaim(st)
		return err == nil && b.Owner == owner
	}
	return false
}

func compareRegs(a, b *claimReg) int {
	return cmp.Or(cmp.Compare(a.key.slot, b.key.slot), a.key.node.Compare(b.key.node), a.key.owner.Compare(b.key.owner))
}

// claimsOn returns the raw claims on an instance and who made them, each once.
func (s *State) claimsOn(id DocID) (claims [][]byte, nodes []stmt.Key) {
	list := slices.SortedFunc(slices.Values(s.byDoc.get(id)), func(a, b *claimReg) int {
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

// DeviceStatements is [State.DeviceStatements].
func (r *Replica) DeviceStatements(owner stmt.Key) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.DeviceStatements(owner)
}

// MeshStatements is [State.MeshStatements].
func (r *Replica) MeshStatements(owner stmt.Key) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.MeshStatements(owner)
}
