package plan

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// Brief says of one World which instances each node has to look at: what it decides of
// all others is nothing, whoever it is. So a decision costs what concerns its node, and
// not instances × nodes, once somebody has gone through them all. It holds no decision:
// without it all answers are the same.
//
// It depends on the World, those confirmed dead included, and on nothing else that a
// node has of its own. It is safe for concurrent use.
type Brief struct {
	at     map[string]int        // position of each instance
	all    []int                 // every node looks at these: a slot is empty, or voters count
	by     map[stmt.Key][]int    // and at these who has a claim, ranks or holds the pack; ascending
	watch  map[stmt.Key][]int    // whose holders it might have to replace
	strays map[stmt.Key][]string // claims on instances that are not there
	used   map[stmt.Key]crdt.Resources
	drains bool // a node does, alive

	found []concern // by position

	needs  []crdt.Resources    // what replicas take, each once
	full   map[stmt.Key]string // which of these the nodes with claims have no room for, if any
	stamps stamps
}

// concern is who has to look at an instance.
type concern struct {
	claims    []crdt.Claim // when that was found
	by, watch []stmt.Key
	all       bool
	stamp     Stamp // names the instance and its claims; zero unless World.Stamped
}

// Briefed returns w with its Brief, for many decisions. Its content must not change
// afterwards, but for Seen; with others confirmed dead it has to be made anew. What was
// found for before, an earlier World of the same crdt.State or the zero one, is not
// looked for again where nothing has changed that it depends on.
func (w World) Briefed(before World) World {
	w.brief = nil
	b := &Brief{
		at: make(map[string]int, len(w.Instances)), by: map[stmt.Key][]int{}, watch: map[stmt.Key][]int{},
		strays: map[stmt.Key][]string{}, used: w.usage(),
	}
	if w.Ranks == nil {
		w.Ranks = &Ranks{}
	}
	for i := range w.Nodes {
		n := &w.Nodes[i]
		b.drains = b.drains || n.Draining && !w.dead(n.Key)
	}
	likeNodes := before.brief != nil && alike(before.Nodes, w.Nodes)
	b.crowd(w, before, likeNodes)
	p := &planner{Input: Input{World: w}, used: b.used}
	same := likeNodes && w.ranksLike(before, b)
	b.found = make([]concern, len(w.Instances))
	for i := range w.Instances {
		s, c := &w.Instances[i], &b.found[i]
		b.at[s.ID] = i
		old := before.found(s)
		known := old != nil && identical(old.claims, w.Claims[s.ID])
		if same && known {
			*c = *old
		} else {
			*c = p.judge(i)
		}
		switch {
		case !w.Stamped:
		case known && before.Stamped:
			c.stamp = old.stamp
		default:
			c.stamp = stampOf(s, w.Claims[s.ID])
		}
		for _, k := range c.by {
			b.add(b.by, k, i)
		}
		for _, k := range c.watch {
			b.add(b.watch, k, i)
		}
		if c.all {
			b.all = append(b.all, i)
		}
	}
	for id, claims := range w.Claims { // any order: each list is sorted
		if _, there := b.at[id]; there {
			continue
		}
		for _, c := range claims {
			if !slices.Contains(b.strays[c.Node], id) {
				b.strays[c.Node] = append(b.strays[c.Node], id)
			}
		}
	}
	for _, ids := range b.strays { // any order: each by itself
		slices.Sort(ids)
	}
	if w.Stamped {
		b.stamp(w, before, likeNodes && before.Stamped)
	}
	w.brief = b
	return w
}

// judge finds who has to look at an instance. An instance that a View has made anew has
// another list of claims, so that who finds the same list finds the same. p has no self, and so nobody's means but
// what claims take of all nodes: a node that counts its own takes no less of itself (see
// count), and so ranks no better by it.
func (p *planner) judge(i int) concern {
	w, all := p.World, &p.World.Instances[i]
	s, claims := active(all), w.Claims[all.ID]
	out := concern{claims: claims, all: counts(all)}
	for _, c := range claims {
		out.by = append(out.by, c.Node)
	}
	for _, at := range firstOf(w.order(all, w.present), interestDepth+all.Replicas) {
		out.watch = append(out.watch, w.Nodes[at].Key)
	}
	if counts(all) {
		out.watch = append(out.watch, out.by...)
	}
	for slot := range s.Replicas {
		out.all = out.all || len(w.holders(s, claims, slot)) == 0
	}
	if out.all {
		return out
	}
	if to, _, ok := p.better(s, claims); ok {
		out.by = append(out.by, to)
	}
	out.by = append(out.by, w.spares(all, claims)...)
	return out
}

// ranksLike says whether nodes, which are alike, rank for every instance in w as they
// did before, and have room for the same.
func (w World) ranksLike(before World, b *Brief) bool {
	return before.Members == w.Members &&
		maps.EqualFunc(before.Dead, w.Dead, func(a, b time.Duration) bool { return true }) &&
		slices.Equal(before.brief.needs, b.needs) && maps.Equal(before.brief.full, b.full)
}

// crowd finds which nodes have no room for what. likeNodes: they are as before.
func (b *Brief) crowd(w, before World, likeNodes bool) {
	seen := map[crdt.Resources]bool{}
	for i := range w.Instances {
		if need := place.Need(w.Instances[i]); !seen[need] {
			seen[need] = true
			b.needs = append(b.needs, need)
		}
	}
	slices.SortFunc(b.needs, compareResources)
	b.full = map[stmt.Key]string{}
	known := likeNodes && slices.Equal(before.brief.needs, b.needs)
	for k, used := range b.used { // any order: each by itself
		if known && before.brief.used[k] == used {
			if was, full := before.brief.full[k]; full {
				b.full[k] = was
			}
			continue
		}
		n := w.nodeOf(k)
		if n == nil {
			continue
		}
		which := make([]byte, len(b.needs))
		for i, need := range b.needs {
			if lacks(n, used, need) != "" {
				which[i] = 1
			}
		}
		if bytes.IndexByte(which, 1) >= 0 {
			b.full[k] = string(which)
		}
	}
}

func compareResources(a, b crdt.Resources) int {
	return cmp.Or(cmp.Compare(a.CPUs, b.CPUs), cmp.Compare(a.Memory, b.Memory), cmp.Compare(a.Disk, b.Disk))
}

// alike says whether two lists of nodes are of the same nodes, which rank alike.
func alike(a, b []crdt.Node) bool {
	if len(a) != len(b) {
		return false
	}
	if identical(a, b) {
		return true
	}
	for i := range a {
		if x, y := &a[i], &b[i]; x.Key != y.Key || x.Operator != y.Operator || x.Total != y.Total || x.Draining != y.Draining ||
			x.Region != y.Region || x.GPU != y.GPU || !maps.Equal(x.Labels, y.Labels) {
			return false
		}
	}
	return true
}

// found is what was found of an instance, if that was as it is now; nil else.
func (w World) found(s *crdt.Spec) *concern {
	if w.brief == nil {
		return nil
	}
	i, there := w.brief.at[s.ID]
	if !there || w.Instances[i].Generation != s.Generation || w.Instances[i].Epoch != s.Epoch {
		return nil
	}
	return &w.brief.found[i]
}

// identical says whether two lists are one, and not empty.
func identical[T any](a, b []T) bool { return len(a) > 0 && len(a) == len(b) && &a[0] == &b[0] }

func (b *Brief) add(to map[stmt.Key][]int, k stmt.Key, i int) {
	if l := to[k]; len(l) == 0 || l[len(l)-1] != i {
		to[k] = append(l, i)
	}
}

// concerns yields the instances that k has to look at, ascending.
func (w *World) concerns(k stmt.Key) func(func(int) bool) {
	if w.brief == nil {
		return upTo(len(w.Instances))
	}
	return merged(w.brief.by[k], w.brief.all)
}

// watches yields those of which k might have to replace somebody, or counts voters.
func (w *World) watches(k stmt.Key) func(func(int) bool) {
	if w.brief == nil {
		return upTo(len(w.Instances))
	}
	return merged(w.brief.watch[k], nil)
}

// lives says whether an instance is there. Without a Brief the first question costs
// what all do.
func (w World) lives() func(id string) bool {
	at := map[string]int{}
	if w.brief != nil {
		at = w.brief.at
	} else {
		for i := range w.Instances {
			at[w.Instances[i].ID] = i
		}
	}
	return func(id string) bool { _, there := at[id]; return there }
}

func upTo(n int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}
}

// merged yields what is in either ascending list, once.
func merged(a, b []int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for len(a) > 0 || len(b) > 0 {
			var next int
			switch {
			case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
				next, a = a[0], a[1:]
			case len(a) == 0 || b[0] < a[0]:
				next, b = b[0], b[1:]
			default:
				next, a, b = a[0], a[1:], b[1:]
			}
			if !yield(next) {
				return
			}
		}
	}
}
