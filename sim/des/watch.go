package des

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
)

// Watcher is told what happens in a run. It is for looking on: it changes nothing, and
// that there is one leaves no trace in the hash. What happens between two events is
// told with the next one, within what one call of Run takes.
type Watcher interface {
	// Node is in another condition than before. At first it is in none.
	Node(at time.Duration, i int, is Condition)
	// Network says who reaches whom from now on.
	Network(at time.Duration, net Reach)
	// Replica starts or stops to run on a node.
	Replica(at time.Duration, i int, r Replica)
	// Spread is over for a statement.
	Spread(at time.Duration, s Spread)
}

// Condition is what holds of a node, as a set.
type Condition uint8

// The conditions. A node without Up whose daemon is to come back has none of Absent and
// Gone.
const (
	Up Condition = 1 << iota
	Asleep
	Stalled
	Absent
	Gone
	Drains
	Lies
	ClogHolds
)

// Reach is who reaches whom. Its slices are the watcher's to keep.
type Reach struct {
	Side []int32    // of every node; nil: there is one side alone
	Cut  [][2]int32 // from, to: nothing gets through
	Loss float64
}

// Replica is one that starts or stops to run.
type Replica struct {
	Slot plan.Slot
	Runs bool
	// Fetched are the bytes of its pack, when the node had it to fetch and this is the
	// first that runs of it there.
	Fetched uint64
}

// Spread is how a statement has come to all nodes that were up and awake when it was
// published, without those that no longer are.
type Spread struct {
	Kind stmt.Kind
	By   int           // the node that published it first
	Made time.Duration // when that was
	// Half, Most and All are how long it took until half of the nodes, 99 of a hundred
	// and all had it.
	Half, Most, All time.Duration
	// Open says that not all have: it is overtaken by a later one that all have, or it
	// is still on its way at the end (see Sim.Spreading).
	Open bool
	// Nodes is how many those are that had it, at the end.
	Nodes int
}

// watching is what is remembered for the Watcher.
type watching struct {
	Watcher
	is   []Condition
	runs [][]plan.Slot // on each node, sorted
	now  []plan.Slot   // scratch
	net  uint64
	loss float64

	awake     bitset       // the nodes that are up and not asleep
	lent      bool         // a statement has awake as its audience: it is copied before it changes
	spreading []*spreading // the oldest first
	byID      map[stmt.ID]*spreading
}

func newWatching(w Watcher) *watching {
	if w == nil {
		return nil
	}
	return &watching{Watcher: w, byID: map[stmt.ID]*spreading{}}
}

// look tells of every node what has changed.
func (s *Sim) look() {
	w := s.watch
	if w == nil {
		return
	}
	for len(w.is) < len(s.nodes) {
		w.is, w.runs = append(w.is, 0), append(w.runs, nil)
	}
	for _, n := range s.nodes {
		s.lookAt(n)
	}
	if w.net != s.net.ver || w.loss != s.net.Loss {
		w.net, w.loss = s.net.ver, s.net.Loss
		w.Network(s.now, s.net.reach())
	}
}

// lookAt tells what has changed about one node.
func (s *Sim) lookAt(n *node) {
	w := s.watch
	if w == nil || int(n.i) >= len(w.is) {
		return
	}
	if is := n.condition(); is != w.is[n.i] {
		w.is[n.i] = is
		w.rouse(int(n.i), is&(Up|Asleep) == Up)
		w.Node(s.now, int(n.i), is)
	}
	if len(n.vms) == 0 && len(w.runs[n.i]) == 0 {
		return
	}
	now := w.now[:0]
	for _, v := range n.vms { // any order: sorted below
		if v.run && v.goneAt == 0 && v.upAt <= s.now && n.executes(v) {
			now = append(now, v.Slot)
		}
	}
	w.now = now
	slices.SortFunc(now, bySlot)
	was := w.runs[n.i]
	if slices.Equal(now, was) {
		return
	}
	w.runs[n.i] = slices.Clone(now)
	for _, slot := range was {
		if _, still := slices.BinarySearchFunc(now, slot, bySlot); !still {
			w.Replica(s.now, int(n.i), Replica{Slot: slot})
		}
	}
	for _, slot := range now {
		if _, before := slices.BinarySearchFunc(was, slot, bySlot); !before {
			fetched := n.usesFetched(n.vms[plan.VMID(slot.Instance, slot.Slot)].Pack)
			w.Replica(s.now, int(n.i), Replica{Slot: slot, Runs: true, Fetched: fetched})
		}
	}
}

func bySlot(a, b plan.Slot) int {
	return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Slot, b.Slot))
}

// condition is what holds of n now.
func (n *node) condition() (is Condition) {
	now := n.sim.now
	for _, c := range []struct {
		holds bool
		is    Condition
	}{
		{n.up, Up}, {n.asleep(now), Asleep}, {n.up && n.paused > now && !n.sleeps, Stalled}, {n.absent, Absent}, {n.gone, Gone},
		{n.draining, Drains}, {n.liar, Lies}, {slices.Contains(n.sim.clogs.at, n.i), ClogHolds},
	} {
		if c.holds {
			is |= c.is
		}
	}
	return is
}

// reach is who reaches whom now.
func (n *network) reach() Reach {
	r := Reach{Loss: n.Loss}
	if n.sides > 1 {
		r.Side = slices.Clone(n.side)
	}
	for p := range n.cut { // any order: sorted below
		r.Cut = append(r.Cut, [2]int32{p.from, p.to})
	}
	slices.SortFunc(r.Cut, func(a, b [2]int32) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	return r
}

// Sizes of packs: most are small, and some are large.
const (
	leastPack = 16 << 20
	mostPack  = 1 << 30
)

// Weighs has a pack be of a size.
func (s *Sim) Weighs(name string, bytes uint64) {
	if s.weights == nil {
		s.weights = map[string]uint64{}
	}
	s.weights[name] = bytes
}

// packSize is the size of a pack, drawn if nobody says: every factor of two is as
// likely.
func (s *Sim) packSize(name string) uint64 {
	if bytes, said := s.weights[name]; said {
		return bytes
	}
	words := []uint64{usePack}
	for _, b := range []byte(name) {
		words = append(words, uint64(b))
	}
	return uint64(leastPack * math.Pow(mostPack/leastPack, chance.Unit(chance.Draw(s.cfg.Seed, words...))))
}

// usesFetched is the size of a pack that n had to fetch and has run nothing of yet.
func (n *node) usesFetched(name string) uint64 {
	p := n.packs[name]
	if p == nil || !p.fetched {
		return 0
	}
	p.fetched = false
	return n.sim.packSize(name)
}
