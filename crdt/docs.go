package crdt

import (
	"fmt"

	"github.com/formthefog/formation/crdt/stmt"
)

// maxDocs is how many documents of one owner are held, unlisted ones included:
// a document may arrive before the owner statement that lists it.
const maxDocs = MaxInstances + 64

// document is the current epoch of one instance's spec.
type document struct {
	id      DocID
	owner   stmt.Key
	epoch   uint64
	root    *change
	changes map[stmt.ID]*change // the root included
	order   []*change           // as accepted: every change after its dependencies
	heads   map[stmt.ID]struct{}
	seen    map[actorSeq]rec // every verified change of this root, accepted or not
	bytes   int
	proof   []rec // two statements by which the owner equivocated; frozen if not nil
}

type change struct {
	rec
	root  stmt.ID // its epoch's root; zero in a root
	actor ActorID
	deps  []stmt.ID
	past  map[ActorID]uint64 // per actor the highest seq in its past, itself included
}

type actorSeq struct {
	actor ActorID
	seq   uint64
}

// held returns the statements that make up the document, in causal order.
func (d *document) held() []rec {
	out := make([]rec, 0, len(d.order)+len(d.proof))
	for _, c := range d.order {
		out = append(out, c.rec)
	}
	return append(out, d.proof...)
}

func (s *State) applySpec(st *stmt.Statement) (bool, error) {
	if err := s.authorise(st.Author, st.Kind); err != nil {
		return false, err
	}
	b, c, err := decodeSpec(st)
	if err != nil {
		return false, err
	}
	id := InstanceID(st.Author, b.Device, b.Counter)
	if o := s.owners[st.Author]; o != nil && o.dead[id] {
		return false, fmt.Errorf("%w: instance %s is deleted", ErrStale, id)
	}
	ch := &change{rec: recOf(st), root: b.Root, actor: b.Actor, deps: c.Deps}
	if b.isRoot() {
		return s.applyRoot(id, ch, c)
	}
	return s.applyChange(id, st, ch, c)
}

// applyRoot starts a new epoch. Of one epoch's roots the one with the lowest ID
// counts, so that concurrent re-roots end alike everywhere.
func (s *State) applyRoot(id DocID, ch *change, c Change) (bool, error) {
	d := s.docs[id]
	if d != nil {
		if ch.epoch < d.epoch || (ch.epoch == d.epoch && ch.id.Compare(d.root.id) > 0) {
			return false, fmt.Errorf("%w: root of epoch %d of %s", ErrStale, ch.epoch, id)
		}
	} else if err := s.makeRoom(id, ch.author); err != nil {
		return false, err
	}
	if err := s.engine.Root(id, c); err != nil {
		return false, fmt.Errorf("root %s: %w", id, err)
	}
	if d != nil {
		s.forgetIDs(d)
	}
	ch.past = map[ActorID]uint64{ch.actor: 1}
	d = &document{
		id: id, owner: ch.author, epoch: ch.epoch, root: ch, order: []*change{ch},
		changes: map[stmt.ID]*change{ch.id: ch}, heads: map[stmt.ID]struct{}{ch.id: {}},
		seen: map[actorSeq]rec{{ch.actor, 1}: ch.rec}, bytes: len(ch.raw),
	}
	s.docs[id] = d
	addTo(s.docsOf, d.owner, id)
	s.dirtyInst[id] = struct{}{}
	s.pending.wake(waitDoc(id))
	return true, nil
}

func (s *State) applyChange(id DocID, st *stmt.Statement, ch *change, c Change) (bool, error) {
	d := s.docs[id]
	wait := func(what string) (bool, error) {
		s.pending.add(waitDoc(id), st)
		return false, fmt.Errorf("%w: change of %s: %s", ErrPending, id, what)
	}
	switch {
	case d == nil || ch.epoch > d.epoch || (ch.epoch == d.epoch && ch.root.Compare(d.root.id) < 0):
		return wait("its epoch's root")
	case ch.epoch < d.epoch || ch.root != d.root.id:
		return false, fmt.Errorf("%w: change of another root of %s", ErrStale, id)
	case d.proof != nil:
		return false, fmt.Errorf("%w: %s", ErrFrozen, id)
	}
	// Two contents for one change are equivocation whether or not either could
	// be accepted: that way it does not matter which arrives first, or whether
	// what they depend on ever arrives.
	as := actorSeq{ch.actor, ch.seq}
	if other, ok := d.seen[as]; ok && other.id != ch.id {
		return s.freeze(d, other, ch.rec)
	}
	if len(d.seen) < 2*maxChanges {
		d.seen[as] = ch.rec
	}
	past := map[ActorID]uint64{}
	for _, dep := range ch.deps {
		p := d.changes[dep]
		if p == nil {
			return wait("a dependency")
		}
		for a, n := range p.past {
			past[a] = max(past[a], n)
		}
	}
	if past[ch.actor] != ch.seq-1 {
		return false, fmt.Errorf("%w: change %d of its actor follows %d", ErrInvalid, ch.seq, past[ch.actor])
	}
	if len(d.order) >= maxChanges {
		return false, fmt.Errorf("%w: %d changes in one epoch of %s", ErrQuota, maxChanges, id)
	}
	if err := s.engine.Apply(id, c); err != nil {
		return false, fmt.Errorf("apply change to %s: %w", id, err)
	}
	past[ch.actor] = ch.seq
	ch.past = past
	d.changes[ch.id] = ch
	d.order = append(d.order, ch)
	d.bytes += len(ch.raw)
	for _, dep := range ch.deps {
		delete(d.heads, dep)
	}
	d.heads[ch.id] = struct{}{}
	s.dirtyInst[id] = struct{}{}
	s.pending.wake(waitDoc(id))
	return true, nil
}

// freeze puts the document back to its root and keeps both contents that its
// owner signed for one change, as proof. Only a higher epoch ends it.
func (s *State) freeze(d *document, a, b rec) (bool, error) {
	if err := s.replayRoot(d); err != nil {
		return false, err
	}
	s.forgetIDs(d)
	proof := []rec{a, b}
	if a.id == d.root.id { // the root is held anyway
		proof = proof[1:]
	}
	d.proof = proof
	d.changes = map[stmt.ID]*change{d.root.id: d.root}
	d.order = []*change{d.root}
	d.heads = map[stmt.ID]struct{}{d.root.id: {}}
	d.seen = nil
	for _, r := range d.held() {
		s.ids[r.id] = struct{}{}
	}
	s.dirtyInst[d.id] = struct{}{}
	return true, nil
}

func (s *State) replayRoot(d *document) error {
	st, err := stmt.Peek(d.root.raw, s.network)
	if err != nil {
		return fmt.Errorf("replay root of %s: %w", d.id, err)
	}
	_, c, err := decodeSpec(st)
	if err != nil {
		return fmt.Errorf("replay root of %s: %w", d.id, err)
	}
	if err := s.engine.Root(d.id, c); err != nil {
		return fmt.Errorf("replay root of %s: %w", d.id, err)
	}
	return nil
}

func (s *State) forgetIDs(d *document) {
	for _, r := range d.held() {
		delete(s.ids, r.id)
	}
}

func (s *State) dropDoc(d *document) {
	s.forgetIDs(d)
	s.engine.Drop(d.id)
	delete(s.docs, d.id)
	removeFrom(s.docsOf, d.owner, d.id)
	s.dirtyInst[d.id] = struct{}{}
}

// makeRoom enforces the quota of documents: a listed one takes the place of an
// unlisted one.
func (s *State) makeRoom(id DocID, owner stmt.Key) error {
	docs := s.docsOf[owner]
	if len(docs) < maxDocs {
		return nil
	}
	o := s.owners[owner]
	listed := func(d DocID) bool { return o != nil && o.live[d] }
	if listed(id) {
		var victim *DocID
		for d := range docs { // any order: the highest goes
			if !listed(d) && (victim == nil || compareDocs(d, *victim) > 0) {
				victim = &d
			}
		}
		if victim != nil {
			s.dropDoc(s.docs[*victim])
			return nil
		}
	}
	return fmt.Errorf("%w: %d documents of %s", ErrQuota, maxDocs, owner)
}
