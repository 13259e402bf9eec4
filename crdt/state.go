package crdt

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// State is the pure core of a replica: verified statements in, Views out. It
// holds no clock, randomness, goroutine or file, and equal sets of statements
// give equal Views in whatever order and however often they are applied.
//
// A State is not safe for concurrent use; the Views it returns are.
type State struct {
	network stmt.NetworkID
	root    stmt.Key
	engine  SpecEngine
	most    quotas
	version uint64

	ids     heldIDs // of every held statement
	members memberState
	owners  map[stmt.Key]*ownerState
	docs    layers[DocID, *document]
	docsOf  map[stmt.Key]map[DocID]struct{}
	secrets map[DocID]map[string]*secretReg // by instance whose document is held, and name
	nodes   layers[stmt.Key, *nodeReg]
	byNode  layers[stmt.Key, claimList]
	byDoc   layers[DocID, claimList]
	bases   map[baseKey]*baseReg
	devices map[stmt.Key][]Device // of owners that have some; replaced, never changed
	husks   map[stmt.Key]*husk    // of nodes this State has forgotten
	pending pending
	shares  bool   // with Forks: nothing that is held is changed in place
	changes uint64 // raised by every change
	collect bool   // append to news
	news    []*stmt.Statement

	tellOmitted bool       // append to omitted
	omitted     []omission // changes that a later epoch left out

	tellDoubled bool                // append to doubled
	doubled     []doubled           // two contents for one thing
	caught      map[doubledKey]bool // whose are told of already

	idx        *index // of idxChanges
	idxChanges uint64

	view       *View
	insts      shards[string, *instView]
	nodeViews  shards[stmt.Key, *nodeView]
	deleted    shards[stmt.Key, [][]DocID] // by owner, as View has it
	dirtyInst  map[DocID]struct{}
	dirtyNode  map[stmt.Key]struct{}
	dirtyBases bool
	dirtyNodes bool // a register has changed, come or gone
	dirty      bool
}

type nodeReg struct {
	rec
	node  *Node
	floor mark // the node's claims made before it are void
}

// claimReg is a held claim. What it says is read off its bytes when a View is
// made: claims are the most of a large state.
type claimReg struct {
	rec
	key  claimKey
	gone bool
}

// claimList are claims of one node or on one instance, in any order: there are
// few, or a search through them is short beside a signature.
type claimList []*claimReg

func (l claimList) find(k claimKey) int {
	return slices.IndexFunc(l, func(c *claimReg) bool { return c.key == k })
}

// claim is the register of that name, nil when there is none.
func (s *State) claim(k claimKey) *claimReg {
	l := s.byDoc.get(k.doc)
	if of := s.byNode.get(k.node); len(of) < len(l) {
		l = of
	}
	if i := l.find(k); i >= 0 {
		return l[i]
	}
	return nil
}

// with returns l with c in the place of what had its key. l itself is used up.
func (l claimList) with(c *claimReg) claimList {
	if i := l.find(c.key); i >= 0 {
		l[i] = c
		return l
	}
	return append(l, c)
}

// without returns l without the claim of that key. l itself is used up.
func (l claimList) without(k claimKey) claimList {
	if i := l.find(k); i >= 0 {
		last := len(l) - 1
		l[i], l[last] = l[last], nil
		l = l[:last]
	}
	return l
}

// claim is what the statement says; it was decoded when it came.
func (c *claimReg) claim() Claim {
	st, err := stmt.Reread(c.raw)
	if err != nil {
		return Claim{}
	}
	b, err := decodeClaim(st)
	if err != nil {
		return Claim{}
	}
	return b.claim(c.rec)
}

type baseKey struct {
	publisher stmt.Key
	name      string
}

type baseReg struct {
	rec
	cid string
}

// NewState returns the empty state of a network. A zero root makes it open:
// everyone is a member of every role. The State owns engine from now on.
func NewState(network stmt.NetworkID, root stmt.Key, engine SpecEngine) *State {
	s := &State{
		network: network, root: root, engine: engine, most: standard,
		ids:    heldIDs{layers: newLayers[stmt.ID, struct{}]()},
		owners: map[stmt.Key]*ownerState{}, docs: newLayers[DocID, *document](), docsOf: map[stmt.Key]map[DocID]struct{}{},
		secrets: map[DocID]map[string]*secretReg{},
		nodes:   newLayers[stmt.Key, *nodeReg](),
		byNode:  newLayers[stmt.Key, claimList](), byDoc: newLayers[DocID, claimList](),
		bases: map[baseKey]*baseReg{}, husks: map[stmt.Key]*husk{}, dirtyInst: map[DocID]struct{}{}, dirtyNode: map[stmt.Key]struct{}{},
		caught: map[doubledKey]bool{},
		dirty:  true,
	}
	s.members.init(root.IsZero())
	s.pending.init()
	return s
}

// Apply verifies and merges one statement: size, shape and staleness first, then
// the signature, then authority. changed says whether it is held now and was not
// before, so that it is worth storing and relaying.
//
// A statement that is held already is (false, nil). ErrNotMember and ErrPending
// mean that it was set aside, within bounds, and counts as soon as what it waits
// for arrives. Every other error is final and leaves the state as it was.
//
// now decides one thing: whether the invite of a member statement is over. A
// zero now leaves that out; it is for statements whose first acceptance was
// decided elsewhere: one's own log, and what a member relays by anti-entropy.
//
// The State keeps raw: it must not change afterwards.
func (s *State) Apply(raw []byte, now time.Time) (changed bool, err error) {
	st, err := stmt.Peek(raw, s.network)
	if err != nil {
		return false, err
	}
	if news, err := s.isNews(st); !news {
		return false, err
	}
	if err := st.CheckSignature(); err != nil {
		return false, err
	}
	return s.applyVerified(st, nil, now)
}

// isNews says whether the signature of st is worth a look: it is not held, and
// nothing is known against it.
func (s *State) isNews(st *stmt.Statement) (bool, error) {
	if s.ids.has(st.ID) {
		return false, nil
	}
	err := s.precheck(st, nil)
	return err == nil, err
}

// applyNews is Apply for a statement whose signature counts: it was checked, or
// made here.
func (s *State) applyNews(st *stmt.Statement, now time.Time) (changed bool, err error) {
	return s.applyRead(st, nil, now)
}

// applyRead is applyNews for a statement of which read, if not nil, is what it says.
func (s *State) applyRead(st *stmt.Statement, read *reading, now time.Time) (changed bool, err error) {
	if s.ids.has(st.ID) {
		return false, nil
	}
	if read == nil {
		read = readAhead(st)
	}
	if err := s.precheck(st, read); err != nil {
		return false, err
	}
	return s.applyVerified(st, read, now)
}

// Pending is how many statements are set aside.
func (s *State) Pending() int { return s.pending.count }

// precheck finds cheap reasons to refuse a statement before its signature is
// looked at. It only reads. read is what st says, or nil.
func (s *State) precheck(st *stmt.Statement, read *reading) error {
	if len(st.Deps) > 0 && st.Kind != stmt.KindSpec || len(st.Via) > 0 && st.Kind != stmt.KindMember {
		return fmt.Errorf("%w: %s statement with dependencies or a delegation", ErrInvalid, st.Kind)
	}
	r := recOf(st)
	switch st.Kind {
	case stmt.KindNode:
		if err := s.outlived(r); err != nil {
			return err
		}
		if old := s.nodes.get(st.Author); old != nil {
			return s.stale(st.Kind, r, old.rec, false)
		}
	case stmt.KindClaim:
		if err := s.outlived(r); err != nil {
			return err
		}
		if n := s.nodes.get(st.Author); n != nil && r.before(n.floor) {
			return fmt.Errorf("%w: claim of %s below its floor", ErrStale, st.Author)
		}
		b, err := decodeClaim(st)
		if err != nil {
			return err
		}
		if old := s.claim(claimKey{st.Author, b.Instance, b.Owner, b.Slot}); old != nil {
			return s.stale(st.Kind, r, old.rec, false)
		}
	case stmt.KindSpec:
		return s.precheckSpec(st, read)
	case stmt.KindSecret:
		return s.precheckSecret(st)
	case stmt.KindMember, stmt.KindOwner, stmt.KindBase:
	default:
		return fmt.Errorf("%w: %q is not a kind of state", ErrInvalid, st.Kind)
	}
	return nil
}

// applyVerified merges st and then whatever waited for it.
func (s *State) applyVerified(st *stmt.Statement, read *reading, now time.Time) (bool, error) {
	changed, err := s.applyOne(st, read, now)
	if !changed {
		return false, err
	}
	s.accepted(st)
	for {
		w := s.pending.ready()
		if w == nil {
			return true, nil
		}
		if s.ids.has(w.ID) {
			continue
		}
		if ok, _ := s.applyOne(w, nil, time.Time{}); ok { // its error was told when it came first
			s.accepted(w)
		}
	}
}

func (s *State) accepted(st *stmt.Statement) {
	s.ids.add(st.ID)
	s.dirty = true
	s.changes++
	if s.collect {
		s.news = append(s.news, st)
	}
}

// takeNews returns what has been accepted since the last call, once collect is
// set: the statements given to Apply and those that had waited for them.
func (s *State) takeNews() []*stmt.Statement {
	news := s.news
	s.news = nil
	return news
}

func (s *State) applyOne(st *stmt.Statement, read *reading, now time.Time) (changed bool, err error) {
	if read == nil {
		read = readAhead(st)
	}
	switch st.Kind {
	case stmt.KindMember:
		return s.applyMember(st, now)
	case stmt.KindBase:
		changed, err = s.applyBase(st)
	case stmt.KindOwner:
		changed, err = s.applyOwner(st, read)
	case stmt.KindSpec:
		changed, err = s.applySpec(st, read)
	case stmt.KindSecret:
		changed, err = s.applySecret(st)
	case stmt.KindNode:
		changed, err = s.applyNode(st)
	case stmt.KindClaim:
		changed, err = s.applyClaim(st)
	default:
		return false, fmt.Errorf("%w: %q is not a kind of state", ErrInvalid, st.Kind)
	}
	if errors.Is(err, ErrNotMember) {
		s.pending.add(waitAuthor(OwnerOf(st)), st, OwnerOf(st) != st.Author)
	}
	return changed, err
}

// roleOf is the role that an author of kind needs.
func roleOf(kind stmt.Kind) stmt.Role {
	switch kind {
	case stmt.KindNode, stmt.KindClaim:
		return stmt.RoleNode
	default:
		return stmt.RoleOwner
	}
}

// authorise says whether author may make statements of kind: nil, ErrStale when
// it never may again, or ErrNotMember.
func (s *State) authorise(author stmt.Key, kind stmt.Kind) error {
	if kind == stmt.KindBase && s.members.hasAny(s.root, author) {
		return nil
	}
	role := roleOf(kind)
	switch {
	case s.members.has(s.root, author, role):
		return nil
	case s.members.isOut(author, role):
		return fmt.Errorf("%w: %s is revoked", ErrStale, author)
	}
	return fmt.Errorf("%w: %s as %s", ErrNotMember, author, role)
}

func (s *State) applyNode(st *stmt.Statement) (bool, error) {
	if err := s.authorise(st.Author, st.Kind); err != nil {
		return false, err
	}
	n, floor, err := decodeNode(st)
	if err != nil {
		return false, err
	}
	r := recOf(st)
	if err := s.outlived(r); err != nil {
		return false, err
	}
	s.Remember(st.Author)
	old := s.nodes.get(st.Author)
	if old != nil {
		if err := s.stale(st.Kind, r, old.rec, true); err != nil {
			return false, err
		}
		s.ids.drop(old.id)
	}
	s.nodes.set(st.Author, &nodeReg{rec: r, node: n, floor: floor})
	for _, c := range slices.Clone(s.byNode.get(st.Author)) {
		if c.before(floor) {
			s.dropClaim(c.key)
		}
	}
	s.dirtyNode[st.Author] = struct{}{}
	return true, nil
}

func (s *State) applyClaim(st *stmt.Statement) (bool, error) {
	if err := s.authorise(st.Author, st.Kind); err != nil {
		return false, err
	}
	b, err := decodeClaim(st)
	if err != nil {
		return false, err
	}
	if o := s.owners[b.Owner]; o != nil && o.dead[b.Instance] {
		return false, fmt.Errorf("%w: claim on deleted instance %s", ErrStale, b.Instance)
	}
	k := claimKey{st.Author, b.Instance, b.Owner, b.Slot}
	r := recOf(st)
	if err := s.outlived(r); err != nil {
		return false, err
	}
	s.Remember(st.Author)
	if n := s.nodes.get(st.Author); n != nil && r.before(n.floor) {
		return false, fmt.Errorf("%w: claim of %s below its floor", ErrStale, st.Author)
	}
	if old := s.claim(k); old != nil {
		if err := s.stale(st.Kind, r, old.rec, true); err != nil {
			return false, err
		}
		s.ids.drop(old.id)
	} else if err := s.makeClaimRoom(k); err != nil {
		return false, err
	}
	c := &claimReg{rec: r, key: k, gone: b.Gone}
	s.byNode.set(k.node, s.ownList(s.byNode.get(k.node)).with(c))
	s.byDoc.set(k.doc, s.ownList(s.byDoc.get(k.doc)).with(c))
	s.dirtyNode[st.Author] = struct{}{}
	s.dirtyInst[b.Instance] = struct{}{}
	return true, nil
}

func (s *State) applyBase(st *stmt.Statement) (bool, error) {
	if err := s.authorise(st.Author, st.Kind); err != nil {
		return false, err
	}
	var b stmt.BaseBody
	if err := stmt.Unmarshal(st.Body, &b); err != nil {
		return false, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if b.Name == "" || len(b.Name) > stmt.MaxBaseName || b.CID == "" || len(b.CID) > stmt.MaxBaseName {
		return false, fmt.Errorf("%w: base name or CID missing or too long", ErrInvalid)
	}
	k := baseKey{st.Author, b.Name}
	r := recOf(st)
	if old := s.bases[k]; old != nil {
		if !r.beats(old.rec) {
			return false, fmt.Errorf("%w: base %q of %s", ErrStale, b.Name, st.Author)
		}
		s.ids.drop(old.id)
	} else if err := s.makeBaseRoom(k); err != nil {
		return false, err
	}
	s.bases[k] = &baseReg{rec: r, cid: b.CID}
	s.dirtyBases = true
	return true, nil
}

// dropClaim forgets a claim register.
func (s *State) dropClaim(k claimKey) {
	c := s.claim(k)
	if c == nil {
		return
	}
	s.ids.drop(c.id)
	setOrDelete(&s.byNode, k.node, s.ownList(s.byNode.get(k.node)).without(k))
	setOrDelete(&s.byDoc, k.doc, s.ownList(s.byDoc.get(k.doc)).without(k))
	s.dirtyNode[k.node] = struct{}{}
	s.dirtyInst[k.doc] = struct{}{}
}

func setOrDelete[K comparable](m *layers[K, claimList], k K, l claimList) {
	if len(l) == 0 {
		m.delete(k)
		return
	}
	m.set(k, l)
}
