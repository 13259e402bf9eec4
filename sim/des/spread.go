package des

import (
	"errors"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// bitset is a set of nodes.
type bitset []uint64

func (b *bitset) set(i int, in bool) {
	for len(*b) <= i/64 {
		*b = append(*b, 0)
	}
	if in {
		(*b)[i/64] |= 1 << (i % 64)
	} else {
		(*b)[i/64] &^= 1 << (i % 64)
	}
}

func (b bitset) has(i int) bool { return i/64 < len(b) && b[i/64]>>(i%64)&1 == 1 }

func (b bitset) word(i int) uint64 {
	if i < len(b) {
		return b[i]
	}
	return 0
}

// spreading is a statement on its way.
type spreading struct {
	Spread
	id   stmt.ID
	to   bitset // who is to have it; shared
	have bitset
	n    int // in have
	next int // see weigh
}

// rouse notes who is up and awake.
func (w *watching) rouse(i int, awake bool) {
	if w.lent {
		w.awake, w.lent = slices.Clone(w.awake), false
	}
	w.awake.set(i, awake)
}

// begin follows a statement that n publishes.
func (s *Sim) begin(n *node, vs []stmt.Verified) {
	w := s.watch
	if w == nil {
		return
	}
	for _, v := range vs {
		st := v.Statement()
		if w.byID[st.ID] != nil {
			continue
		}
		sp := &spreading{Spread: Spread{Kind: st.Kind, By: int(n.i), Made: s.now}, id: st.ID, to: w.awake}
		w.lent = true
		w.byID[st.ID] = sp
		w.spreading = append(w.spreading, sp)
		w.got(s, sp, n.i)
	}
}

// holds notes what n has come to hold.
func (s *Sim) holds(n *node, b batch, errs []error) {
	w := s.watch
	if w == nil || len(w.byID) == 0 {
		return
	}
	for i, v := range b.vs {
		if errs[i] != nil && !errors.Is(errs[i], crdt.ErrStale) { // who refuses it as stale has a later one
			continue
		}
		if sp := w.byID[v.Statement().ID]; sp != nil {
			w.got(s, sp, n.i)
		}
	}
}

func (w *watching) got(s *Sim, sp *spreading, i int32) {
	if sp.have.has(int(i)) {
		return
	}
	sp.have.set(int(i), true)
	sp.n++
	w.weigh(s, sp)
}

// most is the share of the nodes that Spread.Most counts.
const most = 0.99

// weigh sees how far a statement has come, and forgets it when all have it. It looks
// anew only after so many nodes have got it as are missing at least.
func (w *watching) weigh(s *Sim, sp *spreading) {
	if sp.n < sp.next {
		return
	}
	to, missing := 0, 0
	for i, word := range sp.to {
		word &= w.awake.word(i)
		to += bits.OnesCount64(word)
		missing += bits.OnesCount64(word &^ sp.have.word(i))
	}
	sp.Nodes = to - missing
	took := s.now - sp.Made
	for _, m := range []struct {
		took  *time.Duration
		least float64 // of the nodes
	}{{&sp.Half, 0.5}, {&sp.Most, most}, {&sp.All, 1}} {
		if *m.took != 0 {
			continue
		}
		if lacks := missing - to + int(math.Ceil(m.least*float64(to))); lacks > 0 {
			sp.next = sp.n + lacks
			return
		}
		*m.took = max(took, 1)
	}
	w.over(s, sp)
}

func (w *watching) over(s *Sim, sp *spreading) {
	delete(w.byID, sp.id)
	w.spreading = slices.DeleteFunc(w.spreading, func(o *spreading) bool { return o == sp })
	w.Spread(s.now, sp.Spread)
}

// overtakenAfter is how long a statement must be on its way to count as overtaken when
// all nodes hold the same and not all have got it.
const overtakenAfter = 5 * time.Second

// settleSpread looks at what is on its way where it comes no further by itself: whom it
// waits for is down, or holds a later one.
func (s *Sim) settleSpread() {
	w := s.watch
	if w == nil {
		return
	}
	for _, sp := range slices.Clone(w.spreading) {
		sp.next = 0
		w.weigh(s, sp)
	}
	if len(w.spreading) == 0 || s.now-w.spreading[0].Made < overtakenAfter || !s.Converged() {
		return
	}
	for _, sp := range slices.Clone(w.spreading) {
		if s.now-sp.Made >= overtakenAfter {
			sp.Open = true
			w.over(s, sp)
		}
	}
}

// Spreading are the statements that are on their way.
func (s *Sim) Spreading() (out []Spread) {
	if s.watch == nil {
		return nil
	}
	for _, sp := range s.watch.spreading {
		one := sp.Spread
		one.Open = true
		out = append(out, one)
	}
	return out
}
