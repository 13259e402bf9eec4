package place

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Field ranks many specs over one set of nodes, again and again: it remembers who
// drew what, which does not change with who is alive, draining or full. What it
// answers is what [Order] does, for a small part of the work. It is not safe for
// concurrent use.
type Field struct {
	cands   []Candidate
	domains []int32 // by candidate; equal for equal domains
	words   int     // of 64 domains each
	lists   map[fieldKey][]int32
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

// NewField is for these candidates, which must not change; whether they are alive
// or draining is left to the able of Order.
func NewField(cands []Candidate) *Field {
	f := &Field{cands: slices.Clone(cands), domains: make([]int32, len(cands)), lists: map[fieldKey][]int32{}}
	seen := map[Domain]int32{}
	for i := range f.cands {
		c := &f.cands[i]
		c.Alive, c.Draining = true, false
		d := DomainOf(*c)
		if _, ok := seen[d]; !ok {
			seen[d] = int32(len(seen))
		}
		f.domains[i] = seen[d]
	}
	f.words = (len(seen) + 63) / 64
	return f
}

// Is says whether f is for these candidates.
func (f *Field) Is(cands []Candidate) bool {
	return slices.EqualFunc(f.cands, cands, func(a, b Candidate) bool {
		return a.Key == b.Key && a.Operator == b.Operator && a.Total == b.Total && a.Region == b.Region && a.GPU == b.GPU &&
			maps.Equal(a.Labels, b.Labels)
	})
}

// maxFields bounds what a Field remembers: specs that are no more go with the rest.
const maxFields = 1 << 14

// list is the candidates that may run spec, as they drew.
func (f *Field) list(spec crdt.Spec) []int32 {
	key := keyOf(spec)
	if l, ok := f.lists[key]; ok {
		return l
	}
	at := make(map[stmt.Key]int32, len(f.cands))
	for i := range f.cands {
		at[f.cands[i].Key] = int32(i)
	}
	drawn := draws(spec, f.cands)
	l := make([]int32, len(drawn))
	for i, d := range drawn {
		l[i] = at[d.key]
	}
	if len(f.lists) >= maxFields {
		clear(f.lists)
	}
	f.lists[key] = l
	return l
}

// Order yields, best first, the candidates that [Order] would give of those that
// able admits, each by its position among the candidates. It costs what is taken
// of it. able is asked once for each candidate, in the order of their draws.
func (f *Field) Order(spec crdt.Spec, able func(i int) bool) iter.Seq[int] {
	return func(yield func(int) bool) {
		var later []int32 // of a domain that has given one in this round
		given := make([]uint64, f.words)
		for _, i := range f.list(spec) {
			if !able(int(i)) {
				continue
			}
			if f.gave(given, i) {
				later = append(later, i)
				continue
			}
			if !yield(int(i)) {
				return
			}
		}
		for len(later) > 0 {
			clear(given)
			var rest []int32
			for _, i := range later {
				if f.gave(given, i) {
					rest = append(rest, i)
					continue
				}
				if !yield(int(i)) {
					return
				}
			}
			later = rest
		}
	}
}

// gave says whether the domain of a candidate is among those given, and adds it.
func (f *Field) gave(given []uint64, i int32) bool {
	word, bit := &given[f.domains[i]/64], uint64(1)<<(f.domains[i]%64)
	had := *word&bit != 0
	*word |= bit
	return had
}
