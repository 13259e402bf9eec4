package crdt

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// maxOwnerStatements is how many owner statements of one owner are held at once.
// An Author's statements subsume their predecessors, so that an honest owner
// stays below the number of its pages times that of its devices at work at once.
// An owner with so many that say what no other says is closed: see ownerState.
const maxOwnerStatements = 256

// ownerState holds an owner's statements that no other one subsumes. That set
// depends on what has arrived and not on the order, because subsumption is a
// partial order.
type ownerState struct {
	stmts map[stmt.ID]*ownerStmt
	live  map[DocID]bool // listed live, none dead, the first MaxInstances; none when closed
	dead  map[DocID]bool // none when closed
	over  bool           // more than MaxInstances are listed live
	// closed: the owner has said more than can be held. What is refused now may be
	// a deletion, so nothing that it lists counts, and no replica need hold the same
	// statements as another. A statement that subsumes enough of them ends it.
	closed bool
}

type ownerStmt struct {
	rec
	body   ownerBody
	opaque bool // holds fields this version does not know: never subsumed
	// spare: all that this version knows of it another held one says too. It is held
	// as long as there is room. What made it so is only ever dropped for one that
	// does as well.
	spare bool
}

func (s *State) applyOwner(st *stmt.Statement, read *reading) (bool, error) {
	if err := s.authorise(st.Author, st.Kind); err != nil {
		return false, err
	}
	if read.err != nil {
		return false, read.err
	}
	body := read.owner
	o := s.ownOwner(st.Author)
	add := &ownerStmt{rec: recOf(st), body: body, opaque: read.opaque}
	var drop, spare []*ownerStmt
	for _, have := range o.stmts { // any order: any that covers refuses, all that are covered go
		switch {
		case have.says(add) && !add.opaque:
			return false, fmt.Errorf("%w: owner statement of %s", ErrStale, st.Author)
		case have.says(add):
			add.spare = true
		case add.says(have) && !have.opaque:
			drop = append(drop, have)
		case add.says(have):
			spare = append(spare, have)
		}
	}
	if len(o.stmts)-len(drop) >= s.most.owner {
		last := o.lastSpare(spare)
		if add.spare {
			last = o.lastSpare(append(spare, add))
		}
		if last == nil || last == add {
			return false, fmt.Errorf("%w: %d owner statements of %s", ErrQuota, s.most.owner, st.Author)
		}
		drop = append(drop, last)
	}
	for _, have := range spare {
		have.spare = true
	}
	for _, have := range drop {
		delete(o.stmts, have.id)
		s.ids.drop(have.id)
	}
	o.stmts[st.ID] = add
	s.owners[st.Author] = o
	was := o.closed
	if o.closed = len(o.stmts) >= s.most.owner && o.lastSpare(nil) == nil; o.over || o.closed || was {
		s.refreshOwner(st.Author, o)
	} else {
		s.extendOwner(st.Author, o, body)
	}
	s.tellDeleted(st.Author, o)
	return true, nil
}

// extendOwner is refreshOwner after b came, and with nothing gone that b does not
// say: that costs what b says, not what the owner has said.
func (s *State) extendOwner(owner stmt.Key, o *ownerState, b ownerBody) {
	if o.live == nil {
		o.live, o.dead = map[DocID]bool{}, map[DocID]bool{}
	}
	var died []DocID
	for _, d := range b.Dead {
		if !o.dead[d] {
			o.dead[d] = true
			died = append(died, d)
		}
	}
	var born []DocID
	for _, d := range b.Live {
		if !o.dead[d] && !o.live[d] {
			o.live[d] = true
			born = append(born, d)
		}
	}
	for _, d := range died {
		if o.live[d] {
			delete(o.live, d)
			s.dirtyInst[d] = struct{}{}
		}
	}
	if len(o.live) > MaxInstances {
		for _, d := range born { // as refreshOwner finds them
			delete(o.live, d)
		}
		s.refreshOwner(owner, o)
		return
	}
	for _, d := range born {
		s.dirtyInst[d] = struct{}{}
		s.pending.wake(waitDoc(d))
	}
	s.refreshDevices(owner)
	s.bury(owner, died)
}

// says says whether every fact of o is also one of s; of two with equal facts the
// first by compareOwnerStmts says what the other does.
func (s *ownerStmt) says(o *ownerStmt) bool {
	return s.body.subsumes(o.body) && (!o.body.subsumes(s.body) || compareOwnerStmts(s, o) < 0)
}

// lastSpare is the last by compareOwnerStmts of the spare statements that are held
// and of more; nil when there is none.
func (o *ownerState) lastSpare(more []*ownerStmt) (last *ownerStmt) {
	later := func(st *ownerStmt) {
		if last == nil || compareOwnerStmts(st, last) > 0 {
			last = st
		}
	}
	for _, st := range o.stmts { // any order: the last
		if st.spare {
			later(st)
		}
	}
	for _, st := range more {
		later(st)
	}
	return last
}

// compareOwnerStmts orders an owner's statements by how much they say: first those
// with more removals and listings, where a removal counts twice because it takes
// the place of a listing, then those with later descriptions of devices. What
// subsumes another thus comes before it.
func compareOwnerStmts(a, b *ownerStmt) int {
	weigh := func(o ownerBody) (facts int, numbers uint64) {
		for _, d := range o.Devices {
			numbers += d.Number
		}
		return len(o.Live) + len(o.Devices) + 2*(len(o.Dead)+len(o.Gone)), numbers
	}
	af, an := weigh(a.body)
	bf, bn := weigh(b.body)
	c := cmp.Or(cmp.Compare(bf, af), cmp.Compare(bn, an), slices.CompareFunc(b.body.Devices, a.body.Devices, deviceBody.compare))
	if c == 0 && a.opaque != b.opaque { // it covers its equal, and is covered by none
		c = -1
		if b.opaque {
			c = 1
		}
	}
	return cmp.Or(c, a.id.Compare(b.id))
}

// facts are the instances that the owner's statements list and none has as dead,
// and those that are dead.
func (o *ownerState) facts() (live, dead map[DocID]bool) {
	live, dead = map[DocID]bool{}, map[DocID]bool{}
	for _, st := range o.stmts { // any order: a set
		for _, d := range st.body.Dead {
			dead[d] = true
		}
	}
	for _, st := range o.stmts { // any order: a set
		for _, d := range st.body.Live {
			if !dead[d] {
				live[d] = true
			}
		}
	}
	return live, dead
}

// lists says whether the owner's statements list an instance, whether or not it
// counts.
func (o *ownerState) lists(d DocID) bool {
	live, _ := o.facts()
	return live[d]
}

// refreshOwner recomputes which instances live and forgets those that died.
func (s *State) refreshOwner(owner stmt.Key, o *ownerState) {
	before := o.live
	if o.live, o.dead = o.facts(); o.closed {
		o.live, o.dead = nil, nil
	}
	if o.over = len(o.live) > MaxInstances; o.over {
		for _, d := range slices.SortedFunc(maps.Keys(o.live), compareDocs)[MaxInstances:] {
			delete(o.live, d)
		}
	}
	for _, d := range slices.SortedFunc(maps.Keys(o.live), compareDocs) {
		if !before[d] {
			s.dirtyInst[d] = struct{}{}
			s.pending.wake(waitDoc(d))
		}
	}
	for d := range before {
		if !o.live[d] {
			s.dirtyInst[d] = struct{}{}
		}
	}
	s.refreshDevices(owner)
	s.bury(owner, slices.Collect(maps.Keys(o.dead)))
}

// bury forgets what is held of dead instances of owner, given in any order: each is
// dropped by itself.
func (s *State) bury(owner stmt.Key, dead []DocID) {
	s.dropHusks(owner, dead)
	for _, d := range dead {
		if doc := s.docs.get(d); doc != nil && doc.owner == owner {
			s.dropDoc(doc)
		}
		for _, c := range slices.Clone(s.byDoc.get(d)) {
			if c.key.owner == owner {
				s.dropClaim(c.key)
			}
		}
	}
}

// takeOwner removes everything of an owner and returns its raw statements in an
// order in which they can be applied.
func (s *State) takeOwner(owner stmt.Key) [][]byte {
	out := s.OwnerStatements(owner)
	if o := s.owners[owner]; o != nil {
		for id := range o.stmts { // any order: each by itself
			s.ids.drop(id)
		}
		for d := range o.live {
			s.dirtyInst[d] = struct{}{}
		}
		delete(s.owners, owner)
		s.tellDeleted(owner, nil)
		s.refreshDevices(owner)
	}
	for d := range s.docsOf[owner] { // any order: each is dropped by itself
		s.dropDoc(s.docs.get(d))
	}
	return out
}

// ClosedOwners returns the owners that have signed more owner statements than are
// held, so that nothing of them counts; sorted.
func (r *Replica) ClosedOwners() []stmt.Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []stmt.Key
	for k, o := range r.state.owners { // any order: sorted below
		if o.closed {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, stmt.Key.Compare)
	return out
}

// OwnerStatements returns every raw statement of owner that is held, in an order
// in which they can be applied: what an [Author] starts from. The byte slices
// are shared; do not modify them.
func (s *State) OwnerStatements(owner stmt.Key) [][]byte {
	var out [][]byte
	if o := s.owners[owner]; o != nil {
		for _, id := range slices.SortedFunc(maps.Keys(o.stmts), stmt.ID.Compare) {
			out = append(out, o.stmts[id].raw)
		}
	}
	for _, d := range slices.SortedFunc(maps.Keys(s.docsOf[owner]), compareDocs) {
		for _, r := range s.docs.get(d).held() {
			out = append(out, r.raw)
		}
		for _, r := range s.heldSecrets(d) {
			out = append(out, r.raw)
		}
	}
	return out
}
