package crdt

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/formthefog/formation/crdt/stmt"
)

// View is the merged state at one moment: immutable, safe for concurrent use,
// cheap to keep. Slices and maps it returns are shared with other callers
// unless said otherwise: do not modify them. Every list has one order, the same
// on all nodes.
type View struct {
	network stmt.NetworkID
	root    stmt.Key
	version uint64

	insts   *shards[string, *instView]
	nodes   *shards[stmt.Key, *nodeView]
	deleted *shards[stmt.Key, [][]DocID] // what each owner's statements have as dead
	members *memberView
	bases   []Base // by (Name, Publisher)
	devices map[stmt.Key][]Device

	sorted sync.Once
	specs  []Spec // by ID; filled by sorted
	listed *nodeList
}

// nodeList is the registers of all nodes by key. Views between which no register has
// changed have one.
type nodeList struct {
	from *shards[stmt.Key, *nodeView]
	once sync.Once
	list []Node // filled by once
}

func (l *nodeList) all() []Node {
	l.once.Do(func() {
		for _, nv := range l.from.all() {
			if nv.node != nil {
				l.list = append(l.list, *nv.node)
			}
		}
		slices.SortFunc(l.list, func(a, b Node) int { return a.Key.Compare(b.Key) })
		l.from = nil
	})
	return l.list
}

// instView is what a View holds of one instance or of claims on an unknown one.
type instView struct {
	spec    *Spec    // nil while not listed or not rooted
	claims  []Claim  // by (Slot, Node); members only
	secrets []Secret // by Name; none without spec
}

// nodeView is what a View holds of one node key.
type nodeView struct {
	of     *Node       // what the register says
	node   *Node       // that, and who operates the node; nil without a register
	claims []*claimReg // in any order
}

// memberView is never modified once a View holds it.
type memberView struct {
	open     bool
	anyOwner bool
	anyQuota stmt.Quota               // of owners that anyOwner alone admits
	roles    map[stmt.Key][]stmt.Role // sorted; empty when revoked
	revoked  map[stmt.Key]bool        // any revocation known
	operator map[stmt.Key]stmt.Key
	quota    map[stmt.Key]stmt.Quota // of admitted owners that are bounded
	rank     map[stmt.Key]uint64     // of who is admitted: see Rank
	version  stmt.ID                 // names the statements that made all this, in their order
}

// Network returns the network this is the state of.
func (v *View) Network() stmt.NetworkID { return v.network }

// Root returns the network's root key, zero for an open network.
func (v *View) Root() stmt.Key { return v.root }

// Version rises with every View that one State makes. It means nothing between
// nodes.
func (v *View) Version() uint64 { return v.version }

func (v *View) sort() {
	v.sorted.Do(func() {
		for _, iv := range v.insts.all() {
			if iv.spec != nil {
				v.specs = append(v.specs, *iv.spec)
			}
		}
		slices.SortFunc(v.specs, func(a, b Spec) int { return strings.Compare(a.ID, b.ID) })
	})
}

// Instances returns every live instance by ID.
func (v *View) Instances() []Spec {
	v.sort()
	return v.specs
}

// Instance returns the live instance with this ID.
func (v *View) Instance(id string) (Spec, bool) {
	iv, ok := v.insts.get(id)
	if !ok || iv.spec == nil {
		return Spec{}, false
	}
	return *iv.spec, true
}

// InstancesOf returns the live instances of owner by ID. The slice is the
// caller's.
func (v *View) InstancesOf(owner stmt.Key) []Spec {
	var out []Spec
	for _, s := range v.Instances() {
		if s.Owner == owner {
			out = append(out, s)
		}
	}
	return out
}

// Claims returns the claims on instance id by (Slot, Node): only those of
// member nodes that its operators list admits. The instance itself may be
// unknown (not arrived, or already deleted).
func (v *View) Claims(id string) []Claim {
	iv, ok := v.insts.get(id)
	if !ok {
		return nil
	}
	if iv.spec == nil || len(iv.spec.Operators) == 0 {
		return iv.claims
	}
	var out []Claim
	for _, c := range iv.claims {
		if v.MayRun(iv.spec, c.Node) {
			out = append(out, c)
		}
	}
	return out
}

// Unlisted returns the claims of member nodes on instances that this View does not
// know, by (Instance, Slot, Node). The slice is the caller's.
func (v *View) Unlisted() []Claim {
	var out []Claim
	for _, iv := range v.insts.all() {
		if iv.spec == nil {
			out = append(out, iv.claims...)
		}
	}
	slices.SortFunc(out, compareClaims)
	return out
}

// ClaimsBy returns the claims of one node by (Instance, Slot), none unless it
// is a member. The slice is the caller's.
func (v *View) ClaimsBy(node stmt.Key) []Claim {
	nv, ok := v.nodes.get(node)
	if !ok || len(nv.claims) == 0 {
		return nil
	}
	out := make([]Claim, 0, len(nv.claims))
	for _, c := range nv.claims {
		out = append(out, c.claim())
	}
	slices.SortFunc(out, compareClaims)
	return out
}

// Nodes returns every member node that has published a register, by key: the same
// slice while none of that changes.
func (v *View) Nodes() []Node { return v.listed.all() }

// Node returns the register of a member node.
func (v *View) Node(key stmt.Key) (Node, bool) {
	nv, ok := v.nodes.get(key)
	if !ok || nv.node == nil {
		return Node{}, false
	}
	return *nv.node, true
}

// Bases returns every published base name by (Name, Publisher).
func (v *View) Bases() []Base { return v.bases }

// Open says whether the network has no root, so that everyone is a member.
func (v *View) Open() bool { return v.members.open }

// IsMember says whether key has role now. An operator is an owner too, and the
// root key has every role but node. In an open network everyone has every role.
func (v *View) IsMember(key stmt.Key, role stmt.Role) bool {
	return v.members.has(v.root, key, role)
}

// Admissions names what the network says of who is admitted, as what, by whom operated
// and how bounded: where it is equal that is equal. It also depends on the order in
// which that was heard.
func (v *View) Admissions() stmt.ID { return v.members.version }

// Roles returns the roles key was admitted to, sorted; not the implied ones.
func (v *View) Roles(key stmt.Key) []stmt.Role { return v.members.roles[key] }

// Members returns every admitted key, sorted.
func (v *View) Members() []stmt.Key {
	out := make([]stmt.Key, 0, len(v.members.roles))
	for k, r := range v.members.roles {
		if len(r) > 0 {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, stmt.Key.Compare)
	return out
}

// Revoked says whether key was revoked, wholly or in some role.
func (v *View) Revoked(key stmt.Key) bool { return v.members.revoked[key] }

// AnyOwner says whether the root admits every key as an owner.
func (v *View) AnyOwner() bool { return v.members.anyOwner }

// OwnerAllowed says whether key's instances count here.
func (v *View) OwnerAllowed(key stmt.Key) bool { return v.IsMember(key, stmt.RoleOwner) }

// Quota returns what bounds owner, and whether anything does: what the root's own
// admission says, else the largest of what its invites say, field by field, else
// what the root says of owners in general. The root and the owners of an open
// network are not bounded.
func (v *View) Quota(owner stmt.Key) (q stmt.Quota, bounded bool) {
	m := v.members
	if q, ok := m.quota[owner]; ok {
		return q, true
	}
	for _, r := range m.roles[owner] {
		if r != stmt.RoleNode {
			return q, false
		}
	}
	if m.open || owner == v.root || !m.anyOwner {
		return q, false
	}
	return m.anyQuota, m.anyQuota != stmt.Quota{}
}

// OperatorOf returns the operator key that the root named for a node, or zero.
func (v *View) OperatorOf(node stmt.Key) stmt.Key { return v.members.operator[node] }

// Rank orders those whom the network admits by when it did, as far as that is the
// root's to say: whom the root itself admitted comes first, with 0; whom an invite
// did, by when the first such invite ends, in Unix seconds; who is admitted by
// nothing of its own, last. Nobody chooses it for itself, and those of one invite
// are equal.
func (v *View) Rank(key stmt.Key) uint64 {
	r, ok := v.members.rank[key]
	switch {
	case ok:
		return r
	case key == v.root && !key.IsZero():
		return 0
	}
	return math.MaxUint64
}

// MayRun says whether node is a member and on spec's operators list (as itself
// or by its operator), which an empty list does not restrict.
func (v *View) MayRun(spec *Spec, node stmt.Key) bool {
	if !v.IsMember(node, stmt.RoleNode) {
		return false
	}
	if len(spec.Operators) == 0 {
		return true
	}
	op := v.OperatorOf(node)
	return slices.Contains(spec.Operators, node) || (!op.IsZero() && slices.Contains(spec.Operators, op))
}

func (m *memberView) has(root, key stmt.Key, role stmt.Role) bool {
	if key.IsZero() {
		return false
	}
	if m.open {
		return true
	}
	if key == root {
		return role != stmt.RoleNode
	}
	for _, r := range m.roles[key] {
		if r == role || (r == stmt.RoleOperator && role == stmt.RoleOwner) {
			return true
		}
	}
	return role == stmt.RoleOwner && m.anyOwner && !m.revoked[key]
}

func compareClaims(a, b Claim) int {
	return cmp.Or(strings.Compare(a.Instance, b.Instance), cmp.Compare(a.Slot, b.Slot), a.Node.Compare(b.Node), a.Owner.Compare(b.Owner))
}
