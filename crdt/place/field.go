package place

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Field ranks many specs over one set of nodes, again and again: it remembers who
// drew what, which does not change with who is alive, draining or full, nor, but
// for one draw, with a node that comes, changes or goes. What it answers is what
// [Order] does, for a small part of the work. It is not safe for concurrent use.
// The zero value has no candidates.
type Field struct {
	// Everybody who was a candidate, in the order of coming, has an ID: its place in
	// these. One that changes gets another.
	all     []Candidate
	weights []uint64
	domains []int32 // equal for equal domains
	at      []int32 // position among the candidates now; -1: gone
	byAt    []int32 // IDs of the candidates now
	gone    int

	named   map[Domain]int32
	present int // domains of the candidates now
	lists   map[fieldKey]*ranked
	size    int // of lists, see perList
	best    int // keepBest, but for tests
}

// ranked are the IDs below upTo that may run a spec, as they drew: all of them, or
// the best as long as nobody has asked for more.
type ranked struct {
	ids   []int32
	upTo  int32
	whole bool
}

// fieldKey is all of a spec that decides who may run it, and what they draw.
type fieldKey struct {
	id, region, gpu, labels, operators string
	critical                           bool
	need                               crdt.Resources
}

func keyOf(spec crdt.Spec) fieldKey {
	k := fieldKey{id: spec.ID, region: spec.Region, gpu: spec.GPU, critical: len(spec.Critical) > 0, need: Need(spec)}
	if len(spec.Labels) > 0 {
		var b strings.Builder
		for _, l := range sortedKeys(spec.Labels) {
			b.WriteString(l + "\x00" + spec.Labels[l] + "\x00")
		}
		k.labels = b.String()
	}
	for _, o := range spec.Operators {
		k.operators += string(o[:])
	}
	return k
}

// keepBest is how many of those that may run a spec are ranked at first: more than
// decisions take as a rule.
const keepBest = 32

// Bounds of what a Field remembers: beyond it begins anew.
const (
	maxListed = 16 << 20 // size of lists
	perList   = 64       // what a list takes beside its IDs, as so many
	keepGone  = 64       // candidates that are gone, or as many as are there
)

// Set makes these the candidates; whether they are alive or draining is left to the
// able of Order.
func (f *Field) Set(cands []Candidate) {
	if f.named == nil || f.gone > max(keepGone, len(f.byAt)) {
		*f = Field{named: map[Domain]int32{}, lists: map[fieldKey]*ranked{}, best: f.best}
		if f.best == 0 {
			f.best = keepBest
		}
	}
	ids := make(map[stmt.Key]int32, len(f.byAt))
	for _, id := range f.byAt {
		ids[f.all[id].Key] = id
		f.at[id] = -1
	}
	before := len(f.byAt)
	f.byAt = make([]int32, len(cands))
	kept := 0
	for i := range cands {
		id, known := ids[cands[i].Key]
		if known && same(&f.all[id], &cands[i]) {
			kept++
		} else {
			id = f.add(cands[i])
		}
		f.byAt[i], f.at[id] = id, int32(i)
	}
	f.gone += before - kept
	f.present = 0
	there := make([]uint64, f.words())
	for _, id := range f.byAt {
		if !f.gave(there, id) {
			f.present++
		}
	}
}

// words is how long a set of domains is.
func (f *Field) words() int { return (len(f.named) + 63) / 64 }

func (f *Field) add(c Candidate) int32 {
	c.Alive, c.Draining = true, false
	d := DomainOf(c)
	if _, ok := f.named[d]; !ok {
		f.named[d] = int32(len(f.named))
	}
	f.all = append(f.all, c)
	f.weights = append(f.weights, Weight(c.Total))
	f.domains = append(f.domains, f.named[d])
	f.at = append(f.at, -1)
	return int32(len(f.all) - 1)
}

// same says whether two candidates rank alike.
func same(a, b *Candidate) bool {
	return a.Key == b.Key && a.Operator == b.Operator && a.Total == b.Total && a.Region == b.Region && a.GPU == b.GPU &&
		maps.Equal(a.Labels, b.Labels)
}

// idDraw is what the candidate with an ID draws for a spec.
type idDraw struct {
	score, weight uint64
	id            int32
}

func (f *Field) draw(spec *crdt.Spec, id int32) idDraw {
	return idDraw{draw(spec.ID, f.all[id].Key), f.weights[id], id}
}

// compare is byDraw.
func (f *Field) compare(a, b idDraw) int {
	if c := cmp.Compare(a.score*b.weight, b.score*a.weight); c != 0 {
		return c
	}
	return f.all[a.id].Key.Compare(f.all[b.id].Key)
}

// list is the candidates that may run spec, as they drew, and some that are gone:
// all or only the best.
func (f *Field) list(spec *crdt.Spec) *ranked {
	key := keyOf(*spec)
	l := f.lists[key]
	if l == nil {
		l = f.rankBest(spec)
		if f.size += len(l.ids) + perList; f.size > maxListed {
			clear(f.lists)
			f.size = len(l.ids) + perList
		}
		f.lists[key] = l
	}
	for ; int(l.upTo) < len(f.all); l.upTo++ {
		if f.at[l.upTo] < 0 || !f.may(spec, l.upTo) {
			continue
		}
		d := f.draw(spec, l.upTo)
		i, _ := slices.BinarySearchFunc(l.ids, d, func(id int32, d idDraw) int { return f.compare(f.draw(spec, id), d) })
		if i == len(l.ids) && !l.whole {
			continue // it is among those that nobody has asked for
		}
		l.ids = slices.Insert(l.ids, i, l.upTo)
		f.size++
	}
	return l
}

func (f *Field) may(spec *crdt.Spec, id int32) bool {
	ok, _ := Eligible(*spec, f.all[id])
	return ok
}

// rankBest has all candidates draw and ranks the best of them. Of the others it is
// enough to know that they drew no better.
func (f *Field) rankBest(spec *crdt.Spec) *ranked {
	best := make([]idDraw, 0, f.best+1)
	whole := true
	for _, id := range f.byAt {
		if !f.may(spec, id) {
			continue
		}
		x := drawBits(spec.ID, f.all[id].Key)
		if len(best) == f.best {
			whole = false
			if last := best[f.best-1]; atLeast(x)*last.weight > last.score*f.weights[id] {
				continue
			}
		}
		d := idDraw{negLog2(x), f.weights[id], id}
		i, _ := slices.BinarySearchFunc(best, d, f.compare)
		best = slices.Insert(best, i, d)
		best = best[:min(len(best), f.best)]
	}
	return &ranked{ids: idsOf(best, nil), upTo: int32(len(f.all)), whole: whole}
}

// rankRest ranks those whom rankBest left out.
func (f *Field) rankRest(spec *crdt.Spec, l *ranked) {
	var rest []idDraw
	last := f.draw(spec, l.ids[len(l.ids)-1])
	for _, id := range f.byAt {
		if !f.may(spec, id) {
			continue
		}
		if d := f.draw(spec, id); f.compare(d, last) > 0 {
			rest = append(rest, d)
		}
	}
	slices.SortFunc(rest, f.compare)
	l.ids, l.whole = idsOf(rest, l.ids), true
	f.size += len(rest)
}

func idsOf(draws []idDraw, ids []int32) []int32 {
	ids = slices.Grow(ids, len(draws))
	for _, d := range draws {
		ids = append(ids, d.id)
	}
	return ids
}

// walk returns what gives, one after the other, the candidates that may run spec
// and that able admits, as they drew.
func (f *Field) walk(spec *crdt.Spec, able func(i int) bool) (next func() (id int32, ok bool)) {
	l, i := f.list(spec), 0
	return func() (int32, bool) {
		for {
			if i == len(l.ids) && !l.whole {
				f.rankRest(spec, l)
			}
			if i == len(l.ids) {
				return 0, false
			}
			id := l.ids[i]
			if i++; f.at[id] >= 0 && able(int(f.at[id])) {
				return id, true
			}
		}
	}
}

// Order yields, best first, the candidates that [Order] would give of those that
// able admits, each by its position among the candidates. It costs what is taken
// of it. able is asked once for each candidate, in the order of their draws.
func (f *Field) Order(spec crdt.Spec, able func(i int) bool) iter.Seq[int] {
	return func(yield func(int) bool) {
		next, more := f.walk(&spec, able), f.present > 0
		var waiting []int32 // of domains that have given one in this round or before
		given := make([]uint64, f.words())
		for more || len(waiting) > 0 {
			clear(given)
			left := f.present // domains that may give one in this round
			var later []int32
			for left > 0 {
				var id int32
				if len(waiting) > 0 {
					id, waiting = waiting[0], waiting[1:]
				} else if id, more = next(); !more {
					break
				}
				if f.gave(given, id) {
					later = append(later, id)
					continue
				}
				if left--; !yield(int(f.at[id])) {
					return
				}
			}
			waiting = append(later, waiting...)
		}
	}
}

// Rank is what [Rank] gives of those candidates that able admits.
func (f *Field) Rank(spec crdt.Spec, slot int, able func(i int) bool, held map[stmt.Key]int) []stmt.Key {
	var list []drawn
	next := f.walk(&spec, able)
	for id, ok := next(); ok; id, ok = next() {
		list = append(list, drawn{key: f.all[id].Key, domain: DomainOf(f.all[id])})
	}
	return rank(list, max(spec.Replicas, slot+1), slot, held)
}

// gave says whether the domain of a candidate is among those given, and adds it.
func (f *Field) gave(given []uint64, id int32) bool {
	word, bit := &given[f.domains[id]/64], uint64(1)<<(f.domains[id]%64)
	had := *word&bit != 0
	*word |= bit
	return had
}
