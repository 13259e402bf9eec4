package stmt

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
)

// Role is what a member may do.
type Role string

// The roles. RoleOperator includes RoleOwner: whoever may run nodes may ship.
const (
	RoleNode     Role = "node"     // runs instances, publishes node and claim registers
	RoleOperator Role = "operator" // administers nodes
	RoleOwner    Role = "owner"    // owns instances
)

func (r Role) valid() bool { return r == RoleNode || r == RoleOperator || r == RoleOwner }

// Errors of membership and session checks.
var (
	// ErrAuthority: well-formed and signed, but by a key that may not say it.
	ErrAuthority = errors.New("stmt: author has no authority for this statement")
	// ErrExpired: an invite or a session is over.
	ErrExpired = errors.New("stmt: expired")
)

// MemberBody is the body of a [KindMember] statement. Exactly one form:
//
//   - admission: Key and Role; author the root, or an invite key with the
//     root's invite in Via;
//   - revocation: Key and Revoked, Role the one withdrawn or "" for all; author
//     the root; it wins over every admission, whenever that was made. Revoking
//     an invite key revokes whoever it admitted. Of RoleNode alone also by an
//     operator of the node, with the node's word for it in Via;
//   - wildcard: AnyOwner with RoleOwner and no Key; author the root; the latest
//     by (Epoch, Seq) holds, and Revoked ends it. While it holds every key that
//     is not revoked is a member with RoleOwner.
type MemberBody struct {
	Key      Key  `cbor:"key,omitzero"`
	Role     Role `cbor:"role,omitempty"`
	AnyOwner bool `cbor:"any,omitempty"`
	Revoked  bool `cbor:"revoked,omitempty"`
	// Operator is the operator key a node belongs to, for the allow-lists of
	// specs. It counts only in statements by the root.
	Operator Key `cbor:"operator,omitzero"`
	// Quota bounds the owner that is admitted, or every owner that the wildcard
	// alone admits. It counts only in statements by the root; whom an invite
	// admits is bounded by the invite.
	Quota Quota `cbor:"quota,omitzero"`
}

// Quota bounds what one owner may have in a network. A field of zero is no
// bound.
type Quota struct {
	Instances int    `cbor:"instances,omitempty"`
	Replicas  int    `cbor:"replicas,omitempty"` // of all instances together, and so the next
	CPUs      int    `cbor:"cpus,omitempty"`     // virtual CPUs
	Memory    uint64 `cbor:"mem,omitempty"`      // bytes
	Disk      uint64 `cbor:"disk,omitempty"`     // bytes
}

// Join returns the larger bound in every field: what holds for whom two
// admissions bound.
func (q Quota) Join(o Quota) Quota {
	return Quota{
		Instances: looser(q.Instances, o.Instances), Replicas: looser(q.Replicas, o.Replicas),
		CPUs: looser(q.CPUs, o.CPUs), Memory: looser(q.Memory, o.Memory), Disk: looser(q.Disk, o.Disk),
	}
}

// Within says whether q allows nothing that o does not.
func (q Quota) Within(o Quota) bool { return q.Join(o) == o }

func looser[T int | uint64](a, b T) T {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

func (q Quota) check() error {
	if q.Instances < 0 || q.Replicas < 0 || q.CPUs < 0 {
		return fmt.Errorf("%w: quota %+v", ErrShape, q)
	}
	return nil
}

// InviteBody is the body of a [KindInvite] statement: the root lets the holder
// of the private half of Invite admit keys to Roles until Expires, each owner with
// Quota.
type InviteBody struct {
	Invite  Key    `cbor:"invite"`
	Roles   []Role `cbor:"roles"`
	Expires int64  `cbor:"expires"` // Unix seconds
	Quota   Quota  `cbor:"quota,omitzero"`
}

// MaxOperators is how many operators a node names.
const MaxOperators = 8

// OperatorBody is the body of a [KindOperator] statement: its author, a node, says
// that Keys run it and may take it out of the network, for good.
type OperatorBody struct {
	Keys []Key `cbor:"keys"` // 1 to MaxOperators, strictly ascending
}

// Member is a checked member statement.
type Member struct {
	MemberBody
	Statement  *Statement
	Invite     Key   // the invite key that admitted, zero if the root did
	Expires    int64 // Unix seconds until which the invite admits; 0 if the root did
	ByOperator bool  // a revocation by an operator of the node
}

// NewInvite makes an invite key from seed (32 bytes) and the root's statement
// that delegates to it; Invite of i is filled in.
func NewInvite(root ed25519.PrivateKey, net NetworkID, seed []byte, i InviteBody) ([]byte, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: invite seed of %d bytes", ErrShape, len(seed))
	}
	i.Invite = KeyOf(ed25519.NewKeyFromSeed(seed))
	body, err := Marshal(i)
	if err != nil {
		return nil, err
	}
	return Sign(root, Statement{Kind: KindInvite, Network: net, Body: body})
}

// SignMember signs a member statement: priv is the root's key (via nil) or an
// invite key (via the root's raw invite). epoch and seq order wildcards and are
// 0 otherwise.
func SignMember(priv ed25519.PrivateKey, net NetworkID, m MemberBody, via []byte, epoch, seq uint64) ([]byte, error) {
	body, err := Marshal(m)
	if err != nil {
		return nil, err
	}
	return Sign(priv, Statement{Kind: KindMember, Network: net, Epoch: epoch, Seq: seq, Via: via, Body: body})
}

// CheckMember verifies a member statement offline, with the network's root key
// alone. Expiry and revocation are not decided here: the caller compares
// Expires with its clock when it meets the joiner first, and knows revocations.
// Errors wrap those of [Verify] or ErrAuthority.
func CheckMember(raw []byte, net NetworkID, root Key) (*Member, error) {
	s, err := Verify(raw, net)
	if err != nil {
		return nil, err
	}
	return MemberOf(s, root)
}

// MemberOf is [CheckMember] for a statement that [Verify] returned.
func MemberOf(s *Statement, root Key) (*Member, error) {
	m := &Member{Statement: s}
	if s.Kind != KindMember {
		return nil, fmt.Errorf("%w: %s is no member statement", ErrShape, s.Kind)
	}
	if err := Unmarshal(s.Body, &m.MemberBody); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if s.Author == root && !root.IsZero() {
		return m, nil
	}
	if len(s.Via) == 0 || m.AnyOwner || m.Revoked && m.Role != RoleNode {
		return nil, fmt.Errorf("%w: member statement by %s", ErrAuthority, s.Author)
	}
	if m.Revoked {
		m.ByOperator = true
		return m, checkOperator(s, m.Key)
	}
	inv, err := checkInvite(s, root)
	if err != nil {
		return nil, fmt.Errorf("invite: %w", err)
	}
	if !slices.Contains(inv.Roles, m.Role) {
		return nil, fmt.Errorf("%w: the invite does not admit to %q", ErrAuthority, m.Role)
	}
	m.Invite, m.Expires, m.Operator, m.Quota = inv.Invite, inv.Expires, Key{}, inv.Quota
	return m, nil
}

func checkInvite(s *Statement, root Key) (*InviteBody, error) {
	v, err := Verify(s.Via, s.Network)
	if err != nil {
		return nil, err
	}
	if v.Kind != KindInvite || v.Author != root || root.IsZero() {
		return nil, fmt.Errorf("%w: not the root's invite", ErrAuthority)
	}
	var inv InviteBody
	if err := Unmarshal(v.Body, &inv); err != nil {
		return nil, err
	}
	if inv.Invite != s.Author {
		return nil, fmt.Errorf("%w: the invite is for %s", ErrAuthority, inv.Invite)
	}
	return &inv, inv.Quota.check()
}

func (m *Member) check() error {
	switch {
	case m.AnyOwner:
		if !m.Key.IsZero() || m.Role != RoleOwner {
			return fmt.Errorf("%w: wildcard with a key or a role other than owner", ErrShape)
		}
	case m.Key.IsZero():
		return fmt.Errorf("%w: member without a key", ErrShape)
	case !m.Role.valid() && (m.Role != "" || !m.Revoked):
		return fmt.Errorf("%w: role %q", ErrShape, m.Role)
	}
	return m.Quota.check()
}

// SignOperators has a node name those who run it, in any order.
func SignOperators(node ed25519.PrivateKey, net NetworkID, keys []Key) ([]byte, error) {
	keys = slices.Clone(keys)
	slices.SortFunc(keys, Key.Compare)
	b := OperatorBody{Keys: slices.Compact(keys)}
	if err := b.check(); err != nil {
		return nil, err
	}
	body, err := Marshal(b)
	if err != nil {
		return nil, err
	}
	return Sign(node, Statement{Kind: KindOperator, Network: net, Body: body})
}

// OperatorsOf reads what SignOperators made; that node signed it is checked.
func OperatorsOf(raw []byte, net NetworkID, node Key) ([]Key, error) {
	if _, err := Verify(raw, net); err != nil {
		return nil, err
	}
	return PeekOperators(raw, net, node)
}

// PeekOperators is [OperatorsOf] without a check of the signature: for who has raw
// from the node's own register.
func PeekOperators(raw []byte, net NetworkID, node Key) ([]Key, error) {
	s, err := Peek(raw, net)
	if err != nil {
		return nil, err
	}
	if s.Kind != KindOperator || s.Author != node {
		return nil, fmt.Errorf("%w: not the word of %s on its operators", ErrAuthority, node)
	}
	var b OperatorBody
	if err := Unmarshal(s.Body, &b); err != nil {
		return nil, err
	}
	return b.Keys, b.check()
}

func (b OperatorBody) check() error {
	if len(b.Keys) == 0 || len(b.Keys) > MaxOperators || b.Keys[0].IsZero() {
		return fmt.Errorf("%w: %d operators", ErrShape, len(b.Keys))
	}
	for i := 1; i < len(b.Keys); i++ {
		if b.Keys[i-1].Compare(b.Keys[i]) >= 0 {
			return fmt.Errorf("%w: operators out of order or repeated", ErrShape)
		}
	}
	return nil
}

// checkOperator: node has named the author of s.
func checkOperator(s *Statement, node Key) error {
	keys, err := OperatorsOf(s.Via, s.Network, node)
	if err != nil {
		return fmt.Errorf("operators: %w", err)
	}
	if !slices.Contains(keys, s.Author) {
		return fmt.Errorf("%w: %s is no operator of %s", ErrAuthority, s.Author, node)
	}
	return nil
}
