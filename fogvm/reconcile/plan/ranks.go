package plan

import (
	"iter"
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// Ranks remembers how nodes rank for instances from one decision to the next, so
// that a decision costs what changed and not instances × nodes. It holds no
// decision: without it all answers are the same. It is not safe for concurrent
// use. The zero value is ready.
type Ranks struct {
	nodes []crdt.Node // that field is of
	field place.Field
}

// Field ranks these nodes, by key. It is r's.
func (r *Ranks) Field(nodes []crdt.Node) *place.Field {
	if r.nodes != nil && len(nodes) == len(r.nodes) && (len(nodes) == 0 || &nodes[0] == &r.nodes[0]) {
		return &r.field
	}
	if r.nodes != nil && alike(r.nodes, nodes) {
		r.nodes = nodes
		return &r.field
	}
	cands := make([]place.Candidate, len(nodes))
	for i := range nodes {
		cands[i] = candidate(&nodes[i])
	}
	r.field.Set(cands)
	r.nodes = nodes
	return &r.field
}

// order yields those nodes that may run s and that able admits as package place
// ranks them, best first, each by its position in w.Nodes.
func (w World) order(s *crdt.Spec, able func(n *crdt.Node) bool) iter.Seq[int] {
	return w.orderBy(s.ID, s, able)
}

// orderBy is order with another name than the instance's to draw by.
func (w World) orderBy(id string, s *crdt.Spec, able func(n *crdt.Node) bool) iter.Seq[int] {
	spec := *s
	spec.ID = id
	return w.field().Order(spec, w.willing(s, able))
}

// rank is place.Rank of the nodes that may run s and that able admits.
func (w World) rank(s *crdt.Spec, slot int, able func(n *crdt.Node) bool, held map[stmt.Key]int) []stmt.Key {
	return w.field().Rank(*s, slot, w.willing(s, able), held)
}

func (w World) field() *place.Field {
	if w.Ranks == nil {
		return (&Ranks{}).Field(w.Nodes)
	}
	return w.Ranks.Field(w.Nodes)
}

// willing narrows able, by position, to the nodes that accept s and may run it.
func (w World) willing(s *crdt.Spec, able func(n *crdt.Node) bool) func(i int) bool {
	return func(i int) bool {
		n := &w.Nodes[i]
		return w.MayRun(s, n.Key) && labelAccepts(n.Labels[AcceptLabel], s.Owner) && able(n)
	}
}

// present admits the nodes that are there.
func (w World) present(n *crdt.Node) bool { return !w.dead(n.Key) && !n.Draining }

// firstOf are the best n of an order.
func firstOf(order iter.Seq[int], n int) []int {
	out := make([]int, 0, n)
	if n <= 0 {
		return out
	}
	for i := range order {
		if out = append(out, i); len(out) == n {
			break
		}
	}
	return out
}

// among says whether k is one of the nodes at these positions.
func (w World) among(at []int, k stmt.Key) bool {
	return slices.ContainsFunc(at, func(i int) bool { return w.Nodes[i].Key == k })
}
