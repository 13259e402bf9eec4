package crdt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// memberState holds the member statements and the view they make.
type memberState struct {
	memberView
	shared    bool // a View refers to the maps of memberView
	forked    bool // another State refers to the maps below
	admitted  map[stmt.Key]map[admitKey]*admission
	perInvite map[stmt.Key]int
	revokes   map[revokeKey]rec
	// disowned are the nodes that one of their operators took out, while what
	// admits them is held: so there are no more of them than of admissions.
	disowned map[stmt.Key]rec
	wildcard rec // zero: none
}

// admitKey: of several statements that admit a key to a role, the root's latest
// by (epoch, seq) is held, and of one invite's, or of equally late ones, the one
// with the lowest ID.
type admitKey struct {
	role   stmt.Role
	invite stmt.Key // zero: by the root
}

type admission struct {
	rec
	operator stmt.Key
	quota    stmt.Quota
	expires  int64 // Unix seconds, of the invite; 0: by the root
}

// admits says whether r is held rather than old, both of one admitKey.
func (k admitKey) admits(r, old rec) bool {
	if k.invite.IsZero() && (r.epoch != old.epoch || r.seq != old.seq) {
		return r.beats(old)
	}
	return r.id.Compare(old.id) < 0
}

type revokeKey struct {
	key  stmt.Key
	role stmt.Role // "" = all
}

func (m *memberState) init(open bool) {
	m.open = open
	m.roles, m.revoked = map[stmt.Key][]stmt.Role{}, map[stmt.Key]bool{}
	m.operator, m.quota = map[stmt.Key]stmt.Key{}, map[stmt.Key]stmt.Quota{}
	m.rank = map[stmt.Key]uint64{}
	m.admitted, m.perInvite, m.revokes = map[stmt.Key]map[admitKey]*admission{}, map[stmt.Key]int{}, map[revokeKey]rec{}
	m.disowned = map[stmt.Key]rec{}
}

func (m *memberState) isRevoked(key stmt.Key, role stmt.Role) bool {
	_, all := m.revokes[revokeKey{key, ""}]
	_, one := m.revokes[revokeKey{key, role}]
	return all || one
}

// isOut says whether key will never have role again.
func (m *memberState) isOut(key stmt.Key, role stmt.Role) bool {
	_, disowned := m.disowned[key]
	return disowned && role == stmt.RoleNode || m.isRevoked(key, role)
}

func (m *memberState) isAdmitted(key stmt.Key, role stmt.Role) bool {
	for ak := range m.admitted[key] { // any order: one is enough
		if ak.role == role {
			return true
		}
	}
	return false
}

func (m *memberState) hasAny(root, key stmt.Key) bool {
	return m.has(root, key, stmt.RoleNode) || m.has(root, key, stmt.RoleOwner)
}

// knowsOthers says whether another node than self is a member or has published a
// register.
func (s *State) knowsOthers(self stmt.Key) bool {
	for key, roles := range s.members.roles { // any order: one is enough
		if key != self && slices.Contains(roles, stmt.RoleNode) {
			return true
		}
	}
	for key := range s.nodes.all() { // any order: one is enough
		if key != self {
			return true
		}
	}
	return false
}

func (s *State) applyMember(st *stmt.Statement, now time.Time) (bool, error) {
	if s.members.open {
		return false, fmt.Errorf("%w: an open network has no members", ErrInvalid)
	}
	m, err := stmt.MemberOf(st, s.root)
	if errors.Is(err, stmt.ErrShape) || errors.Is(err, stmt.ErrEncoding) {
		// Only its body: a later version may know more forms and roles.
		return false, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return false, err
	}
	switch {
	case m.AnyOwner:
		return s.applyWildcard(m)
	case m.ByOperator:
		return s.disown(m)
	case m.Revoked:
		return s.applyRevocation(m)
	default:
		return s.applyAdmission(m, now)
	}
}

func (s *State) applyWildcard(m *stmt.Member) (bool, error) {
	ms := &s.members
	r := recOf(m.Statement)
	if !r.beats(ms.wildcard) {
		return false, fmt.Errorf("%w: wildcard", ErrStale)
	}
	s.ids.drop(ms.wildcard.id)
	ms.wildcard, ms.anyQuota = r, m.Quota
	ms.took(r.id)
	if ms.anyOwner == !m.Revoked {
		return true, nil
	}
	ms.anyOwner = !m.Revoked
	if ms.anyOwner {
		s.pending.wakeAuthors()
	} else {
		for _, k := range slices.SortedFunc(maps.Keys(s.owners), stmt.Key.Compare) {
			s.demote(k)
		}
		for _, k := range slices.SortedFunc(maps.Keys(s.docsOf), stmt.Key.Compare) {
			s.demote(k)
		}
	}
	return true, nil
}

func (s *State) applyRevocation(m *stmt.Member) (bool, error) {
	ms := &s.members
	k := revokeKey{m.Key, m.Role}
	r := recOf(m.Statement)
	if old, ok := ms.revokes[k]; ok {
		if old.id.Compare(r.id) < 0 {
			return false, fmt.Errorf("%w: revocation of %s", ErrStale, m.Key)
		}
		s.ids.drop(old.id)
	}
	ms.unfork()
	ms.revokes[k] = r
	ms.took(r.id)
	affected := []stmt.Key{m.Key}
	for key, as := range ms.admitted { // any order: sorted below
		for ak := range as { // any order: one is enough
			if ak.invite == m.Key && !m.Key.IsZero() {
				affected = append(affected, key)
				break
			}
		}
	}
	slices.SortFunc(affected, stmt.Key.Compare)
	for _, key := range affected {
		s.dropRevoked(key)
		s.refreshMember(key)
	}
	return true, nil
}

// disown takes a node out by the word of its operator. One that is not known to be
// admitted is waited for.
func (s *State) disown(m *stmt.Member) (bool, error) {
	ms := &s.members
	r := recOf(m.Statement)
	old, known := ms.disowned[m.Key]
	switch {
	case ms.isRevoked(m.Key, stmt.RoleNode), known && old.id.Compare(r.id) <= 0:
		return false, fmt.Errorf("%w: revocation of %s", ErrStale, m.Key)
	case !ms.isAdmitted(m.Key, stmt.RoleNode):
		s.pending.add(waitAuthor(m.Key), m.Statement, true)
		return false, fmt.Errorf("%w: %s", ErrNotMember, m.Key)
	case known:
		s.ids.drop(old.id)
	}
	ms.unfork()
	ms.disowned[m.Key] = r
	ms.took(r.id)
	s.refreshMember(m.Key)
	return true, nil
}

// dropRevoked forgets the admissions of key that a revocation has ended.
func (s *State) dropRevoked(key stmt.Key) {
	s.members.unfork()
	for ak, a := range s.members.admitted[key] { // any order: each by itself
		if s.members.ended(key, ak) {
			s.ids.drop(a.id)
			delete(s.members.admitted[key], ak)
			s.members.perInvite[ak.invite]--
		}
	}
}

func (m *memberState) ended(key stmt.Key, ak admitKey) bool {
	return m.isRevoked(key, ak.role) || (!ak.invite.IsZero() && m.isRevoked(ak.invite, ""))
}

func (s *State) applyAdmission(m *stmt.Member, now time.Time) (bool, error) {
	ms := &s.members
	ak := admitKey{m.Role, m.Invite}
	if ms.ended(m.Key, ak) {
		return false, fmt.Errorf("%w: %s or its invite is revoked", ErrStale, m.Key)
	}
	r := recOf(m.Statement)
	old := ms.admitted[m.Key][ak]
	switch {
	case old != nil && !ak.admits(r, old.rec):
		return false, fmt.Errorf("%w: %s is admitted already", ErrStale, m.Key)
	case old == nil && m.Expires != 0 && !now.IsZero() && m.Expires <= now.Unix():
		return false, fmt.Errorf("%w: the invite of %s", stmt.ErrExpired, m.Key)
	case old == nil && !m.Invite.IsZero() && ms.perInvite[m.Invite] >= s.most.perInvite(now):
		return false, fmt.Errorf("%w: %d members by one invite", ErrQuota, ms.perInvite[m.Invite])
	}
	ms.unfork()
	if old != nil {
		s.ids.drop(old.id)
	} else {
		ms.perInvite[m.Invite]++
	}
	if ms.admitted[m.Key] == nil {
		ms.admitted[m.Key] = map[admitKey]*admission{}
	}
	ms.admitted[m.Key][ak] = &admission{rec: r, operator: m.Operator, quota: m.Quota, expires: m.Expires}
	ms.took(r.id)
	s.refreshMember(m.Key)
	return true, nil
}

// took notes a statement that the maps of the view follow.
func (m *memberState) took(id stmt.ID) { m.version = sha256.Sum256(append(m.version[:], id[:]...)) }

// quotaOf joins the bounds of the admissions that make key an owner: those by the
// root when there are any, else those by invites.
func (m *memberState) quotaOf(key stmt.Key) stmt.Quota {
	var direct, invited []stmt.Quota
	for ak, a := range m.admitted[key] { // any order: joining has none
		switch {
		case ak.role == stmt.RoleNode:
		case ak.invite.IsZero():
			direct = append(direct, a.quota)
		default:
			invited = append(invited, a.quota)
		}
	}
	if len(direct) == 0 {
		direct = invited
	}
	var q stmt.Quota
	for i, o := range direct {
		if i == 0 {
			q = o
		}
		q = q.Join(o)
	}
	return q
}

// unshare makes the maps of the view ones that no View refers to.
func (m *memberState) unshare() {
	if m.shared {
		m.roles, m.revoked = maps.Clone(m.roles), maps.Clone(m.revoked)
		m.operator, m.quota = maps.Clone(m.operator), maps.Clone(m.quota)
		m.rank = maps.Clone(m.rank)
		m.shared = false
	}
}

// refreshMember recomputes what the view says of key, and lets its statements
// in or out accordingly.
func (s *State) refreshMember(key stmt.Key) {
	ms := &s.members
	ms.unfork()
	ms.unshare()
	r, disowned := ms.disowned[key]
	if disowned && !ms.isAdmitted(key, stmt.RoleNode) {
		s.ids.drop(r.id)
		delete(ms.disowned, key)
		disowned = false
	}
	var roles []stmt.Role
	var operator stmt.Key
	delete(ms.rank, key)
	for ak, a := range ms.admitted[key] { // any order: the highest operator, the lowest rank, roles sorted below
		if r, ok := ms.rank[key]; !ok || uint64(a.expires) < r {
			ms.rank[key] = uint64(a.expires)
		}
		if ak.role == stmt.RoleNode && operator.Compare(a.operator) < 0 {
			operator = a.operator // the root named several: the highest, so that all agree
		}
		if !slices.Contains(roles, ak.role) && !(disowned && ak.role == stmt.RoleNode) {
			roles = append(roles, ak.role)
		}
	}
	slices.Sort(roles)
	ms.roles[key] = roles
	if len(roles) == 0 {
		delete(ms.roles, key)
	}
	ms.operator[key] = operator
	if operator.IsZero() {
		delete(ms.operator, key)
	}
	ms.quota[key] = ms.quotaOf(key)
	if ms.quota[key] == (stmt.Quota{}) {
		delete(ms.quota, key)
	}
	delete(ms.revoked, key)
	for _, role := range []stmt.Role{"", stmt.RoleNode, stmt.RoleOperator, stmt.RoleOwner} {
		if _, ok := ms.revokes[revokeKey{key, role}]; ok || disowned {
			ms.revoked[key] = true
		}
	}
	s.dirtyNode[key] = struct{}{}
	s.demote(key)
	s.pending.wake(waitAuthor(key))
}

// demote takes out every statement of key that it may not make any more. What
// was not revoked for good waits within the bounds of pending, so that the order
// of statements about membership does not matter.
func (s *State) demote(key stmt.Key) {
	var out [][]byte
	if s.nodes.get(key) != nil && s.authorise(key, stmt.KindNode) != nil {
		n := s.nodes.get(key)
		out = append(out, n.raw)
		s.ids.drop(n.id)
		s.nodes.delete(key)
		s.dirtyNode[key] = struct{}{}
	}
	if s.authorise(key, stmt.KindClaim) != nil {
		s.Remember(key) // whoever admits it again gets it from others
		for _, c := range slices.Clone(s.byNode.get(key)) {
			out = append(out, c.raw)
			s.dropClaim(c.key)
		}
	}
	if s.authorise(key, stmt.KindBase) != nil {
		for k, b := range s.bases { // any order: sorted below
			if k.publisher == key {
				out = append(out, b.raw)
				s.ids.drop(b.id)
				delete(s.bases, k)
				s.dirtyBases = true
			}
		}
	}
	slices.SortFunc(out, bytes.Compare) // what the bounds of pending let wait must not depend on map order
	if s.authorise(key, stmt.KindSpec) != nil {
		out = append(out, s.takeOwner(key)...)
	}
	for _, raw := range out {
		st, err := stmt.Peek(raw, s.network) // its signature was verified when it came
		if err == nil && !s.members.isOut(key, roleOf(st.Kind)) {
			s.pending.add(waitAuthor(key), st, st.Author != key)
		}
	}
}
