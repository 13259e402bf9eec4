package crdt

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// document is the current epoch of one instance's spec. Most documents are a root
// and nothing more, kept as its bytes, or a line of changes that each follow the
// one before, so that the last op of a key counts: the engine hears of a document
// when there is something to merge.
type document struct {
	id    DocID
	text  string // id, as texts have it
	owner stmt.Key
	// device and counter are what the ID is made of.
	device  stmt.Key
	counter uint64

	epoch     uint64
	root      *change
	delegates []stmt.Key        // of the root
	ahead     *Spec             // what the root alone says, until a View has it
	prior     prior             // what the root has taken in of the epoch before
	order     []*change         // by (depth, ID): the root, and every change after its dependencies
	seen      map[actorSeq]rec  // changes in order, and within MaxDocBytes what else was verified; not the root
	bytes     int               // of order
	noted     int               // bytes of the root and of seen
	proof     []rec             // two statements by which the owner equivocated; frozen if not nil
	line      map[string][]byte // merged values of a line of more than the root, else nil
}

type change struct {
	rec
	root  stmt.ID // its epoch's root; zero in a root
	actor ActorID
	time  int64 // display time
	deps  []stmt.ID
	depth int        // 0 for the root, else one more than its deepest dependency
	past  []actorSeq // per actor the highest seq in its past, itself included
}

// seqOf is the highest number of actor in the past of c, itself included.
func (c *change) seqOf(actor ActorID) uint64 {
	for _, p := range c.past {
		if p.actor == actor {
			return p.seq
		}
	}
	return 0
}

// follow takes seq of actor into the past of c.
func (c *change) follow(p actorSeq) {
	for i := range c.past {
		if c.past[i].actor == p.actor {
			c.past[i].seq = max(c.past[i].seq, p.seq)
			return
		}
	}
	c.past = append(c.past, p)
}

// find returns the change that counts under id, or nil. MaxDocBytes keeps the
// search short.
func (d *document) find(id stmt.ID) *change {
	for _, c := range d.order {
		if c.id == id {
			return c
		}
	}
	return nil
}

// heads returns the changes that no other one follows, sorted.
func (d *document) heads() []stmt.ID {
	if len(d.order) == 1 {
		return []stmt.ID{d.root.id}
	}
	followed := map[stmt.ID]struct{}{}
	for _, c := range d.order {
		for _, dep := range c.deps {
			followed[dep] = struct{}{}
		}
	}
	var out []stmt.ID
	for _, c := range d.order {
		if _, ok := followed[c.id]; !ok {
			out = append(out, c.id)
		}
	}
	slices.SortFunc(out, stmt.ID.Compare)
	return out
}

// verified returns the statement that an actor was seen to make under a number.
func (d *document) verified(as actorSeq) (rec, bool) {
	if as == (actorSeq{d.root.actor, 1}) {
		return d.root.rec, true
	}
	r, ok := d.seen[as]
	return r, ok
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

// allows says whether author may change the document in its epoch.
func (d *document) allows(author stmt.Key) error {
	if author == d.owner || slices.Contains(d.delegates, author) {
		return nil
	}
	return fmt.Errorf("%w: %s is no delegate of %s", stmt.ErrAuthority, author, d.id)
}

func (s *State) applySpec(st *stmt.Statement, read *reading) (bool, error) {
	if read.err != nil {
		return false, read.err
	}
	b, c := read.spec, read.change
	owner := ownerOf(st.Author, b.Owner)
	if err := s.authorise(owner, st.Kind); err != nil {
		return false, err
	}
	id := b.instance(st.Author)
	if o := s.owners[owner]; o != nil && o.dead[id] {
		return false, fmt.Errorf("%w: instance %s is deleted", ErrStale, id)
	}
	ch := &change{rec: recOf(st), root: b.Root, actor: b.Actor, time: st.Time, deps: c.Deps}
	if b.isRoot() {
		return s.applyRoot(id, ch, read, st.Deps)
	}
	return s.applyChange(id, st, ch, c)
}

// applyRoot starts a new epoch. Of one epoch's roots the one with the lowest ID
// counts, so that concurrent re-roots end alike everywhere.
func (s *State) applyRoot(id DocID, ch *change, read *reading, heads []stmt.ID) (bool, error) {
	b := read.spec
	d := s.docs.get(id)
	if d != nil {
		if ch.epoch < d.epoch || (ch.epoch == d.epoch && ch.id.Compare(d.root.id) > 0) {
			return false, fmt.Errorf("%w: root of epoch %d of %s", ErrStale, ch.epoch, id)
		}
	} else if err := s.makeDocRoom(id, ch.author); err != nil {
		return false, err
	}
	var p prior
	var text string
	if d == nil {
		text = id.String()
	} else {
		text, p = d.text, s.succeed(d, heads, ch.epoch)
		s.forgetIDs(d)
		s.engine.Drop(id)
	}
	ch.past = []actorSeq{{ch.actor, 1}}
	d = &document{
		id: id, text: text, owner: ch.author, device: b.Device, counter: b.Counter,
		epoch: ch.epoch, root: ch, delegates: b.Delegates, prior: p, order: []*change{ch}, ahead: read.root,
		bytes: len(ch.raw), noted: len(ch.raw),
	}
	s.docs.set(id, d)
	s.ownDocsOf(d.owner)[id] = struct{}{}
	s.dirtyInst[id] = struct{}{}
	s.pending.wake(waitDoc(id))
	return true, nil
}

func (s *State) applyChange(id DocID, st *stmt.Statement, ch *change, c Change) (bool, error) {
	d := s.docs.get(id)
	wait := func(what string) (bool, error) {
		s.pending.add(waitDoc(id), st, OwnerOf(st) != st.Author)
		return false, fmt.Errorf("%w: change of %s: %s", ErrPending, id, what)
	}
	switch {
	case d == nil || ch.epoch > d.epoch || (ch.epoch == d.epoch && ch.root.Compare(d.root.id) < 0):
		return wait("its epoch's root")
	case ch.epoch < d.epoch || ch.root != d.root.id:
		s.late(s.ownDoc(d), ch.rec)
		return false, fmt.Errorf("%w: change of another root of %s", ErrStale, id)
	case d.proof != nil:
		return false, fmt.Errorf("%w: %s", ErrFrozen, id)
	}
	if err := d.allows(ch.author); err != nil {
		return false, err
	}
	d = s.ownDoc(d)
	// Two contents for one change are equivocation whether or not either could
	// be accepted: that way it does not matter which arrives first, or whether
	// what they depend on ever arrives.
	as := actorSeq{ch.actor, ch.seq}
	if other, ok := d.verified(as); ok && other.id != ch.id {
		return s.freeze(d, other, ch.rec)
	}
	if d.noted-d.bytes+len(ch.raw) <= MaxDocBytes {
		d.note(ch)
	}
	for _, dep := range ch.deps {
		p := d.find(dep)
		if p == nil {
			return wait("a dependency")
		}
		for _, as := range p.past {
			ch.follow(as)
		}
		ch.depth = max(ch.depth, p.depth+1)
	}
	if last := ch.seqOf(ch.actor); last != ch.seq-1 {
		return false, fmt.Errorf("%w: change %d of its actor follows %d", ErrInvalid, ch.seq, last)
	}
	ch.follow(as)
	if err := s.insert(d, ch, c); err != nil {
		return false, err
	}
	s.dirtyInst[id] = struct{}{}
	s.pending.wake(waitDoc(id))
	return true, nil
}

// note remembers the change that an actor made under a number.
func (d *document) note(ch *change) {
	as := actorSeq{ch.actor, ch.seq}
	if _, ok := d.verified(as); !ok {
		if d.seen == nil {
			d.seen = map[actorSeq]rec{}
		}
		d.seen[as] = ch.rec
		d.noted += len(ch.raw)
	}
}

// insert accepts a change whose dependencies the document holds. In the order by
// (depth, ID) a change counts as long as those before it have no more than
// MaxDocBytes. So what counts depends on which changes there are and not on which
// came first: a change that counts may end others behind it, each after all it
// depends on, and nothing that was left out or taken out can count again.
func (s *State) insert(d *document, ch *change, c Change) error {
	at, _ := slices.BinarySearchFunc(d.order, ch, compareChanges)
	order := slices.Insert(slices.Clone(d.order), at, ch)
	sum, keep := 0, 0
	for keep < len(order) && sum <= MaxDocBytes {
		sum += len(order[keep].raw)
		keep++
	}
	if at >= keep {
		return fmt.Errorf("%w: more than %d bytes in one epoch of %s", ErrQuota, MaxDocBytes, d.id)
	}
	switch lined := d.line != nil || len(d.order) == 1; {
	case lined && len(ch.deps) == 1 && ch.deps[0] == d.order[len(d.order)-1].id:
		// One more of a line: at its end, and within the bound, as at < keep.
		if err := s.lengthen(d, c); err != nil {
			return err
		}
	case lined || keep < len(order):
		if err := s.replay(d, order[:keep]); err != nil {
			return err
		}
		d.line = nil
	default:
		if err := s.engine.Apply(d.id, c); err != nil {
			return fmt.Errorf("apply change to %s: %w", d.id, err)
		}
	}
	for _, out := range order[keep:] {
		s.ids.drop(out.id)
		delete(d.seen, actorSeq{out.actor, out.seq})
		d.noted -= len(out.raw)
	}
	d.note(ch)
	d.order, d.bytes = order[:keep:keep], sum
	return nil
}

func compareChanges(a, b *change) int {
	return cmp.Or(cmp.Compare(a.depth, b.depth), a.id.Compare(b.id))
}

// values returns the merged keys of a document in any order: of a root those it
// sets, else what the changes make of them.
func (s *State) values(d *document) ([]Op, error) {
	vals := d.line
	switch {
	case len(d.order) == 1:
		c, err := decodeChange(d.root)
		return c.rootValues(), err
	case vals == nil:
		var err error
		if vals, err = s.engine.Values(d.id); err != nil {
			return nil, err
		}
	}
	out := make([]Op, 0, len(vals))
	for k, v := range vals { // any order: as promised
		out = append(out, Op{Key: k, Value: v})
	}
	return out, nil
}

// lengthen takes a change into a line.
func (s *State) lengthen(d *document, c Change) error {
	if d.line == nil {
		vals, err := s.values(d)
		if err != nil {
			return err
		}
		d.line = make(map[string][]byte, len(vals)+len(c.Ops))
		for _, op := range vals {
			d.line[op.Key] = op.Value
		}
	}
	for _, op := range c.Ops {
		d.line[op.Key] = op.Value
		if isNull(op.Value) {
			delete(d.line, op.Key)
		}
	}
	return nil
}

// decode returns what a held change says.
func decodeChange(ch *change) (Change, error) {
	st, err := stmt.Reread(ch.raw)
	if err != nil {
		return Change{}, err
	}
	st.ID = ch.id
	_, c, err := decodeSpec(st)
	return c, err
}

// replay makes the engine hold just these changes, of which the first is the root.
func (s *State) replay(d *document, order []*change) error {
	for i, ch := range order {
		c, err := decodeChange(ch)
		if err != nil {
			return fmt.Errorf("replay %s: %w", d.id, err)
		}
		if i == 0 {
			err = s.engine.Root(d.id, c)
		} else {
			err = s.engine.Apply(d.id, c)
		}
		if err != nil {
			return fmt.Errorf("replay %s: %w", d.id, err)
		}
	}
	return nil
}

// freeze puts the document back to its root and keeps both contents that its
// owner signed for one change, as proof. Only a higher epoch ends it.
func (s *State) freeze(d *document, a, b rec) (bool, error) {
	s.equivocated(stmt.KindSpec, a, b)
	s.engine.Drop(d.id)
	s.forgetIDs(d)
	proof := []rec{a, b}
	if a.id == d.root.id { // the root is held anyway
		proof = proof[1:]
	}
	d.proof = proof
	d.order, d.line = []*change{d.root}, nil
	d.seen, d.bytes, d.noted = nil, len(d.root.raw), 0
	for _, r := range d.held() {
		s.ids.add(r.id)
	}
	s.dirtyInst[d.id] = struct{}{}
	return true, nil
}

func (s *State) forgetIDs(d *document) {
	for _, r := range d.held() {
		s.ids.drop(r.id)
	}
}

func (s *State) dropDoc(d *document) {
	s.forgetIDs(d)
	s.engine.Drop(d.id)
	s.dropSecrets(d.id)
	s.docs.delete(d.id)
	of := s.ownDocsOf(d.owner)
	if delete(of, d.id); len(of) == 0 {
		delete(s.docsOf, d.owner)
	}
	s.dirtyInst[d.id] = struct{}{}
}
