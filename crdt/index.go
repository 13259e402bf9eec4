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

// index returns the current index; it costs O(n log n) after a change. Its maps
// are read in any order: the items are sorted at the end.
func (s *State) index() *index {
	if s.idx != nil && s.idxChanges == s.changes {
		return s.idx
	}
	x := &index{items: make([]indexed, 0, len(s.ids))}
	add := func(subject uint64, class uint8, rank int, r rec) {
		it := indexed{
			entry: entry{Subject: subject, ID: shortID(r.id[:16]), Class: class, Epoch: r.epoch, Seq: r.seq}, rank: rank,
		}
		if r.raw != nil {
			it.raws = [][]byte{r.raw}
		}
		x.items = append(x.items, it)
	}
	ms := &s.members
	for key, as := range ms.admitted {
		for _, a := range as {
			add(subjectOf(stmt.KindMember, key[:]), classSet, rankMember, a.rec)
		}
	}
	for k, r := range ms.revokes {
		add(subjectOf(stmt.KindMember, k.key[:]), classSet, rankMember, r)
	}
	for key, r := range ms.disowned {
		add(subjectOf(stmt.KindMember, key[:]), classSet, rankMember, r)
	}
	if ms.wildcard.raw != nil {
		add(subjectOf(stmt.KindMember), classRegister, rankMember, ms.wildcard)
	}
	for k, b := range s.bases {
		add(subjectOf(stmt.KindBase, k.publisher[:], []byte(k.name)), classRegister, rankBase, b.rec)
	}
	for key, o := range s.owners {
		s.indexOwner(x, subjectOf(stmt.KindOwner, key[:]), key, o, add)
	}
	for id, d := range s.docs {
		s.indexDoc(x, subjectOf(stmt.KindSpec, id[:]), d, add)
	}
	s.indexSecrets(add)
	for key, n := range s.nodes {
		add(subjectOf(stmt.KindNode, key[:]), classRegister, rankNode, n.rec)
	}
	for c := range s.heldClaims() {
		k := c.key
		add(claimSubject(k), classRegister, rankClaim, c.rec)
	}
	s.indexHusks(add)
	slices.SortFunc(x.items, func(a, b indexed) int { return a.compare(b.entry) })
	x.byID = make(map[shortID]int, len(x.items))
	for i, it := range x.items {
		x.byID[it.ID] = i
	}
	s.idx, s.idxChanges = x, s.changes
	return x
}

// heldClaims ranges over all claims in any order.
func (s *State) heldClaims() iter.Seq[*claimReg] {
	return func(yield func(*claimReg) bool) {
		for _, l := range s.byNode { // any order: as promised
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
func (s *State) indexOwner(x *index, subject uint64, key stmt.Key, o *ownerState, add func(uint64, uint8, int, rec)) {
	if !o.closed {
		for _, st := range o.stmts { // any order: the index is sorted
			add(subject, classSet, rankOwner, st.rec)
		}
		return
	}
	h := sha256.Sum256(append([]byte("formation/closed/1\x00"), key[:]...))
	it := indexed{entry: entry{Subject: subject, ID: shortID(h[:16]), Class: classClosed}, rank: rankOwner}
	for _, id := range slices.SortedFunc(maps.Keys(o.stmts), stmt.ID.Compare) {
		it.raws = append(it.raws, o.stmts[id].raw)
	}
	x.items = append(x.items, it)
}

func (s *State) indexDoc(x *index, subject uint64, d *document, add func(uint64, uint8, int, rec)) {
	if d.proof == nil {
		for i, c := range d.order {
			add(subject, classDoc, rankSpec+i, c.rec)
		}
		return
	}
	// Any proof freezes: two replicas frozen by different pairs hold the same.
	h := sha256.Sum256(append([]byte("formation/frozen/1\x00"), d.root.id[:]...))
	it := indexed{entry: entry{Subject: subject, ID: shortID(h[:16]), Class: classDoc, Epoch: d.epoch}, rank: rankSpec}
	for _, r := range d.held() {
		it.raws = append(it.raws, r.raw)
	}
	x.items = append(x.items, it)
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
