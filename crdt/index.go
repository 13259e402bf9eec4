package crdt

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/formthefog/formation/crdt/stmt"
)

// Classes of entries: how a peer can tell from an entry that it does not need
// the statement.
const (
	classSet      = 0 // wanted unless held
	classRegister = 1 // not wanted when a newer (epoch, seq) of the subject is held
	classDoc      = 2 // not wanted when a higher epoch of the subject is held
	classClosed   = 3 // all that is held of a closed owner; wanted unless held
)

// shortID is the part of a statement's ID that anti-entropy sends.
type shortID [16]byte

// UnmarshalCBOR accepts a byte string of exactly 16 bytes.
func (i *shortID) UnmarshalCBOR(b []byte) error {
	var a ActorID
	err := a.UnmarshalCBOR(b)
	*i = shortID(a)
	return err
}

// entry tells a peer of one held statement.
type entry struct {
	_       struct{} `cbor:",toarray"`
	Subject uint64   // hash of what it is about: the register, document or key
	ID      shortID
	Class   uint8
	Epoch   uint64
	Seq     uint64
}

func (e entry) compare(o entry) int {
	return cmp.Or(cmp.Compare(e.Subject, o.Subject), slices.Compare(e.ID[:], o.ID[:]))
}

// statements is how many statements an entry may stand for: a frozen document has
// three.
func (e entry) statements() int {
	if e.Class == classClosed {
		return maxOwnerStatements
	}
	return 3
}

// indexed is an entry with its statements: one, a frozen document's root and
// proof, or none of a node that was forgotten.
type indexed struct {
	entry
	raws [][]byte
	rank int // statements of a lower rank come first when they are sent
}

// index is everything a State holds at one moment, by (Subject, ID). It is
// immutable; anti-entropy compares two of them.
type index struct {
	items []indexed
	byID  map[shortID]int

	once sync.Once
	sum  [sha256.Size]byte // filled by once

	mu    sync.Mutex
	first map[int][]byte // digests of the first level, by bits; peers that hold about as much ask for one
}

// all is the digest of all items.
func (x *index) all() [sha256.Size]byte {
	x.once.Do(func() { x.sum = digest(x.items) })
	return x.sum
}

// ranks: an order in which a receiver can accept each statement at once.
const (
	rankMember = iota
	rankBase
	rankOwner
	rankSpec               // plus the change's position in its document
	rankSecret = 1<<20 - 1 // after all of specs
	rankClaim  = 1 << 20
	rankNode   // after claims: its floor voids those that newer ones replace
)

func subjectOf(kind stmt.Kind, parts ...[]byte) uint64 {
	h := sha256.New()
	h.Write([]byte(kind))
	for _, p := range parts {
		h.Write([]byte{byte(len(p))})
		h.Write(p)
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// index returns the current index. After a change it costs a look at everything
// held, and the hashing and sorting of what the last index had not.
func (s *State) index() *index {
	if s.idx != nil && s.idxChanges == s.changes {
		return s.idx
	}
	s.idx, s.idxChanges = s.reindex(s.idx), s.changes
	return s.idx
}

// reindex makes an index, of which what is as in old, if not nil, is taken from
// there. Maps are read in any order: the items are sorted at the end.
func (s *State) reindex(old *index) *index {
	x := newIndexer(old)
	ms := &s.members
	for key, as := range ms.admitted {
		for _, a := range as {
			if !x.keeps(a.rec, rankMember) {
				x.add(subjectOf(stmt.KindMember, key[:]), classSet, rankMember, a.rec)
			}
		}
	}
	for k, r := range ms.revokes {
		if !x.keeps(r, rankMember) {
			x.add(subjectOf(stmt.KindMember, k.key[:]), classSet, rankMember, r)
		}
	}
	for key, r := range ms.disowned {
		if !x.keeps(r, rankMember) {
			x.add(subjectOf(stmt.KindMember, key[:]), classSet, rankMember, r)
		}
	}
	if r := ms.wildcard; r.raw != nil && !x.keeps(r, rankMember) {
		x.add(subjectOf(stmt.KindMember), classRegister, rankMember, r)
	}
	for k, b := range s.bases {
		if !x.keeps(b.rec, rankBase) {
			x.add(subjectOf(stmt.KindBase, k.publisher[:], []byte(k.name)), classRegister, rankBase, b.rec)
		}
	}
	for key, o := range s.owners {
		s.indexOwner(x, key, o)
	}
	for id, d := range s.docs.all() {
		s.indexDoc(x, id, d)
	}
	s.indexSecrets(x)
	for key, n := range s.nodes.all() {
		if !x.keeps(n.rec, rankNode) {
			x.add(subjectOf(stmt.KindNode, key[:]), classRegister, rankNode, n.rec)
		}
	}
	for c := range s.heldClaims() {
		if !x.keeps(c.rec, rankClaim) {
			x.add(claimSubject(c.key), classRegister, rankClaim, c.rec)
		}
	}
	s.indexHusks(x)
	return x.index()
}

// indexer makes an index from an older one and what is not in that.
type indexer struct {
	old   *index
	ranks []int // of the items of old that are kept, plus one
	fresh []indexed
}

func newIndexer(old *index) *indexer {
	if old == nil {
		old = &index{}
	}
	return &indexer{old: old, ranks: make([]int, len(old.items))}
}

// keeps says whether the older index has the statement, and then keeps its item.
func (x *indexer) keeps(r rec, rank int) bool {
	i, ok := x.old.byID[shortID(r.id[:16])]
	if !ok || len(r.raw) == 0 {
		return false
	}
	// The very same bytes: of another signature, or of none, the item is another.
	if raws := x.old.items[i].raws; len(raws) != 1 || &raws[0][0] != &r.raw[0] {
		return false
	}
	x.ranks[i] = rank + 1
	return true
}

// add adds an item for a statement, or for one of which only the number is left.
func (x *indexer) add(subject uint64, class uint8, rank int, r rec) {
	it := indexed{
		entry: entry{Subject: subject, ID: shortID(r.id[:16]), Class: class, Epoch: r.epoch, Seq: r.seq}, rank: rank,
	}
	if r.raw != nil {
		it.raws = [][]byte{r.raw}
	}
	x.fresh = append(x.fresh, it)
}

// index merges what is kept with what is new.
func (x *indexer) index() *index {
	slices.SortFunc(x.fresh, func(a, b indexed) int { return a.compare(b.entry) })
	out := &index{items: make([]indexed, 0, len(x.fresh)+len(x.ranks))}
	fresh := x.fresh
	for i, it := range x.old.items {
		if x.ranks[i] == 0 {
			continue
		}
		for len(fresh) > 0 && fresh[0].compare(it.entry) < 0 {
			out.items, fresh = append(out.items, fresh[0]), fresh[1:]
		}
		it.rank = x.ranks[i] - 1
		out.items = append(out.items, it)
	}
	out.items = append(out.items, fresh...)
	out.byID = make(map[shortID]int, len(out.items))
	for i, it := range out.items {
		out.byID[it.ID] = i
	}
	return out
}

// heldClaims ranges over all claims in any order.
func (s *State) heldClaims() iter.Seq[*claimReg] {
	return func(yield func(*claimReg) bool) {
		for _, l := range s.byNode.all() { // any order: as promised
			for _, c := range l {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// indexOwner adds an owner's statements. Any that close it do: two replicas where
// it is closed hold the same.
func (s *State) indexOwner(x *indexer, key stmt.Key, o *ownerState) {
	if !o.closed {
		for _, st := range o.stmts { // any order: the index is sorted
			if !x.keeps(st.rec, rankOwner) {
				x.add(subjectOf(stmt.KindOwner, key[:]), classSet, rankOwner, st.rec)
			}
		}
		return
	}
	h := sha256.Sum256(append([]byte("formation/closed/1\x00"), key[:]...))
	it := indexed{entry: entry{Subject: subjectOf(stmt.KindOwner, key[:]), ID: shortID(h[:16]), Class: classClosed}, rank: rankOwner}
	for _, id := range slices.SortedFunc(maps.Keys(o.stmts), stmt.ID.Compare) {
		it.raws = append(it.raws, o.stmts[id].raw)
	}
	x.fresh = append(x.fresh, it)
}

func (s *State) indexDoc(x *indexer, id DocID, d *document) {
	if d.proof == nil {
		for i, c := range d.order {
			if !x.keeps(c.rec, rankSpec+i) {
				x.add(subjectOf(stmt.KindSpec, id[:]), classDoc, rankSpec+i, c.rec)
			}
		}
		return
	}
	// Any proof freezes: two replicas frozen by different pairs hold the same.
	h := sha256.Sum256(append([]byte("formation/frozen/1\x00"), d.root.id[:]...))
	it := indexed{entry: entry{Subject: subjectOf(stmt.KindSpec, id[:]), ID: shortID(h[:16]), Class: classDoc, Epoch: d.epoch}, rank: rankSpec}
	for _, r := range d.held() {
		it.raws = append(it.raws, r.raw)
	}
	x.fresh = append(x.fresh, it)
}

// statements returns every held raw statement in an order in which they can be
// applied.
func (x *index) statements() [][]byte {
	order := slices.Clone(x.items)
	sortForSending(order)
	var out [][]byte
	for _, it := range order {
		out = append(out, it.raws...)
	}
	return out
}

func sortForSending(items []indexed) {
	slices.SortStableFunc(items, func(a, b indexed) int { return cmp.Compare(a.rank, b.rank) })
}

// bucket returns the items whose subject begins with the given bits.
func (x *index) bucket(bits, n int) []indexed {
	rest := x.from(bits, n)
	end := 0
	for end < len(rest) && bucketOf(rest[end].Subject, bits) == n {
		end++
	}
	return rest[:end]
}

// from returns the items from the first whose subject begins with the given bits,
// or that would come after it.
func (x *index) from(bits, n int) []indexed {
	lo, _ := slices.BinarySearchFunc(x.items, n, func(it indexed, n int) int { return cmp.Compare(bucketOf(it.Subject, bits), n) })
	return x.items[lo:]
}

func bucketOf(subject uint64, bits int) int {
	if bits == 0 {
		return 0
	}
	return int(subject >> (64 - bits))
}

// digest hashes the IDs of items, which are sorted.
func digest(items []indexed) [sha256.Size]byte {
	h := sha256.New()
	for _, it := range items {
		h.Write(it.ID[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// wants says whether a peer's entry is news here.
func (x *index) wants(e entry) bool {
	if _, have := x.byID[e.ID]; have {
		return false
	}
	i, _ := slices.BinarySearchFunc(x.items, e.Subject, func(it indexed, s uint64) int { return cmp.Compare(it.Subject, s) })
	for ; i < len(x.items) && x.items[i].Subject == e.Subject; i++ {
		have := x.items[i].entry
		if have.Class != e.Class {
			continue
		}
		switch e.Class {
		case classRegister:
			if cmp.Or(cmp.Compare(have.Epoch, e.Epoch), cmp.Compare(have.Seq, e.Seq), slices.Compare(have.ID[:], e.ID[:])) > 0 {
				return false
			}
		case classDoc:
			if have.Epoch > e.Epoch {
				return false
			}
		}
	}
	return true
}
