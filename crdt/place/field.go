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

	named map[Domain]int32
	lists map[fieldKey]*ranked
	size  int // IDs in lists
}

// ranked are the IDs that may run a spec, below upTo, as they drew.
type ranked struct {
	ids  []int32
	upTo int32
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

// Bounds of what a Field remembers: beyond it begins anew.
const (
	maxListed = 16 << 20 // IDs in lists
	keepGone  = 64       // candidates that are gone, or as many as are there
)

// Set makes these the candidates; whether they are alive or draining is left to the
// able of Order.
func (f *Field) Set(cands []Candidate) {
	if f.named == nil || f.gone > max(keepGone, len(f.byAt)) {
		*f = Field{named: map[Domain]int32{}, lists: map[fieldKey]*ranked{}}
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
}

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

// list is the candidates that may run spec, as they drew, and some that are gone.
func (f *Field) list(spec crdt.Spec) []int32 {
	key := keyOf(spec)
	l := f.lists[key]
	if l == nil {
		if f.size += len(f.byAt); f.size > maxListed {
			clear(f.lists)
			f.size = len(f.byAt)
		}
		l = f.rank(&spec)
		f.lists[key] = l
	}
	for ; int(l.upTo) < len(f.all); l.upTo++ {
		if f.at[l.upTo] < 0 {
			continue
		}
		if ok, _ := Eligible(spec, f.all[l.upTo]); !ok {
			continue
		}
		d := f.draw(&spec, l.upTo)
		i, _ := slices.BinarySearchFunc(l.ids, d, func(id int32, d idDraw) int { return f.compare(f.draw(&spec, id), d) })
		l.ids = slices.Insert(l.ids, i, l.upTo)
		f.size++
	}
	return l.ids
}

// rank has all candidates draw.
func (f *Field) rank(spec *crdt.Spec) *ranked {
	list := make([]idDraw, 0, len(f.byAt))
	for _, id := range f.byAt {
		if ok, _ := Eligible(*spec, f.all[id]); ok {
			list = append(list, f.draw(spec, id))
		}
	}
	slices.SortFunc(list, f.compare)
	l := &ranked{ids: make([]int32, len(list)), upTo: int32(len(f.all))}
	for i, d := range list {
		l.ids[i] = d.id
	}
	return l
}

// Order yields, best first, the candidates that [Order] would give of those that
// able admits, each by its position among the candidates. It costs what is taken
// of it. able is asked once for each candidate, in the order of their draws.
func (f *Field) Order(spec crdt.Spec, able func(i int) bool) iter.Seq[int] {
	return func(yield func(int) bool) {
		var later []int32 // of a domain that has given one in this round
		given := make([]uint64, (len(f.named)+63)/64)
		for _, id := range f.list(spec) {
			if f.at[id] < 0 || !able(int(f.at[id])) {
				continue
			}
			if f.gave(given, id) {
				later = append(later, id)
				continue
			}
			if !yield(int(f.at[id])) {
				return
			}
		}
		for len(later) > 0 {
			clear(given)
			var rest []int32
			for _, id := range later {
				if f.gave(given, id) {
					rest = append(rest, id)
					continue
				}
				if !yield(int(f.at[id])) {
					return
				}
			}
			later = rest
		}
	}
}

// Rank is what [Rank] gives of those candidates that able admits.
func (f *Field) Rank(spec crdt.Spec, slot int, able func(i int) bool, held map[stmt.Key]int) []stmt.Key {
	var list []drawn
	for _, id := range f.list(spec) {
		if f.at[id] >= 0 && able(int(f.at[id])) {
			list = append(list, drawn{key: f.all[id].Key, domain: DomainOf(f.all[id])})
		}
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
