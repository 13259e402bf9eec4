package crdt

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Bounds of what is kept of authors who sign two contents for one thing.
const (
	doubledName = "equivocations"
	// maxDoubled is how many proofs are kept, one for an author and kind: the first.
	maxDoubled = 256
	// maxDoubledOnce is how many a State tells of at once.
	maxDoubledOnce = 64
)

// Equivocation is two statements that one key has signed for one thing: two
// contents of a register under one (boot epoch, seq), or of one change of a
// document. No honest writer does; a key that two machines use does.
type Equivocation struct {
	Author     stmt.Key
	Kind       stmt.Kind // node, claim or spec
	Epoch, Seq uint64
	// Raws are the two statements: the proof.
	Raws    [2][]byte
	FoundAt time.Time // by this node's clock
}

// doubledKey is of whom one proof is enough.
type doubledKey struct {
	author stmt.Key
	kind   stmt.Kind
}

// doubled is what a State tells its Replica of an equivocation.
type doubled struct {
	kind stmt.Kind
	a, b rec
}

// twin says whether r and old are two contents of one register under one number.
func (r rec) twin(old rec) bool {
	return r.epoch == old.epoch && r.seq == old.seq && r.id != old.id
}

// stale refuses a register's statement that does not beat the one that is held.
// Before its signature was looked at it lets the first twin by an author pass: that
// may prove an equivocation, of which it tells once the signature was verified.
func (s *State) stale(kind stmt.Kind, r, old rec, verified bool) error {
	twin := r.twin(old)
	if twin && verified {
		s.equivocated(kind, old, r)
	}
	if r.beats(old) || twin && !verified && s.tellDoubled && !s.caught[doubledKey{r.author, kind}] && len(s.caught) < maxDoubled {
		return nil
	}
	return fmt.Errorf("%w: %s register of %s", ErrStale, kind, r.author)
}

// equivocated tells of two contents by one author.
func (s *State) equivocated(kind stmt.Kind, a, b rec) {
	if !s.tellDoubled {
		return
	}
	if len(s.caught) < maxDoubled {
		s.caught[doubledKey{b.author, kind}] = true
	}
	if len(s.doubled) < maxDoubledOnce {
		s.doubled = append(s.doubled, doubled{kind, a, b})
	}
}

// keptDoubled is an equivocation on disk.
type keptDoubled struct {
	_    struct{} `cbor:",toarray"`
	At   int64    // Unix seconds
	A, B []byte
}

// equivocations are what a Replica knows of them.
type equivocations struct {
	counts map[stmt.Kind]uint64 // since Open
	list   []Equivocation       // oldest first
	known  map[doubledKey]bool  // of list
	dirty  bool
}

func (e *equivocations) add(x doubled, now time.Time) (first bool) {
	e.counts[x.kind]++
	k := doubledKey{x.b.author, x.kind}
	if e.known[k] || len(e.list) >= maxDoubled {
		return false
	}
	e.known[k], e.dirty = true, true
	e.list = append(e.list, Equivocation{
		Author: x.b.author, Kind: x.kind, Epoch: x.b.epoch, Seq: x.b.seq,
		Raws: [2][]byte{x.a.raw, x.b.raw}, FoundAt: time.Unix(now.Unix(), 0),
	})
	return true
}

// takeDoubled keeps what the state has told of. Under mu.
func (r *Replica) takeDoubled() {
	for _, x := range r.state.doubled {
		if r.doubled.add(x, r.cfg.Now()) {
			r.cfg.Logger.Warn("somebody has signed two contents under one number", "author", x.b.author, "kind", string(x.kind), "epoch", x.b.epoch, "seq", x.b.seq)
		}
	}
	r.state.doubled = nil
}

// flushDoubled brings the proofs to disk. They are this node's own knowledge and no
// part of the state: losing them loses a report. Under mu.
func (r *Replica) flushDoubled() {
	e := &r.doubled
	if !e.dirty {
		return
	}
	e.dirty = false
	b, err := encodeDoubled(e.list)
	if err == nil {
		err = writeAtomic(r.fsys, doubledName, func(w io.Writer) error {
			_, err := w.Write(b)
			return err
		})
	}
	if err != nil {
		r.cfg.Logger.Warn("who has signed two contents under one number is not kept over a restart", "err", err)
	}
}

// loadDoubled takes up what the file says; a damaged one counts as none.
func (r *Replica) loadDoubled() error {
	e := &r.doubled
	e.counts, e.known = map[stmt.Kind]uint64{}, map[doubledKey]bool{}
	b, err := readSmall(r.fsys, doubledName, 2*maxDoubled*(stmt.MaxStatement+16))
	if err != nil {
		return fmt.Errorf("read %s: %w", doubledName, err)
	}
	list, err := decodeDoubled(b, r.cfg.Network)
	if err != nil {
		r.cfg.Logger.Warn("who has signed two contents under one number is not known any more", "err", err)
	}
	e.list = list
	for _, x := range list {
		k := doubledKey{x.Author, x.Kind}
		e.known[k], r.state.caught[k] = true, true
	}
	return nil
}

func encodeDoubled(list []Equivocation) ([]byte, error) {
	kept := make([]keptDoubled, len(list))
	for i, x := range list {
		kept[i] = keptDoubled{At: x.FoundAt.Unix(), A: x.Raws[0], B: x.Raws[1]}
	}
	b, err := stmt.Marshal(kept)
	return append(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)), b...), err
}

// decodeDoubled reads the file and checks each proof again.
func decodeDoubled(b []byte, network stmt.NetworkID) (list []Equivocation, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) < 4 || crc32.Checksum(b[4:], castagnoli) != binary.LittleEndian.Uint32(b) {
		return nil, fmt.Errorf("%s is damaged", doubledName)
	}
	var kept []keptDoubled
	if err := stmt.Unmarshal(b[4:], &kept); err != nil {
		return nil, fmt.Errorf("%s: %w", doubledName, err)
	}
	if len(kept) > maxDoubled {
		return nil, fmt.Errorf("%s: %d proofs", doubledName, len(kept))
	}
	for _, k := range kept {
		e, err := k.equivocation(network)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doubledName, err)
		}
		list = append(list, e)
	}
	return list, nil
}

// equivocation is what the two statements prove.
func (k keptDoubled) equivocation(network stmt.NetworkID) (Equivocation, error) {
	a, err := stmt.Verify(k.A, network)
	if err != nil {
		return Equivocation{}, err
	}
	b, err := stmt.Verify(k.B, network)
	if err != nil {
		return Equivocation{}, err
	}
	if a.Kind != b.Kind || a.ID == b.ID || a.Epoch != b.Epoch || a.Seq != b.Seq {
		return Equivocation{}, fmt.Errorf("%w: two statements that may both be", ErrInvalid)
	}
	return Equivocation{
		Author: b.Author, Kind: b.Kind, Epoch: b.Epoch, Seq: b.Seq,
		Raws: [2][]byte{k.A, k.B}, FoundAt: time.Unix(k.At, 0),
	}, nil
}

// Equivocations are those that this node has seen, one for an author and kind, by
// author. Others may have seen others. Do not modify the byte slices.
func (r *Replica) Equivocations() []Equivocation {
	r.mu.Lock()
	out := slices.Clone(r.doubled.list)
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b Equivocation) int {
		return cmp.Or(a.Author.Compare(b.Author), cmp.Compare(a.Kind, b.Kind))
	})
	return out
}
