package place

import (
	"cmp"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// DomainLabel is the node label that names what fails together with the node: a
// rack, a switch, a house. Names mean the same whoever operates the nodes.
const DomainLabel = "domain"

// Domain is what fails together: the nodes of one name, else those of one
// operator, else one node alone.
type Domain struct {
	Name string
	Key  stmt.Key // of the operator or the node; zero with a Name
}

// DomainOf is the failure domain of a node.
func DomainOf(c Candidate) Domain {
	switch name := c.Labels[DomainLabel]; {
	case name != "":
		return Domain{Name: name}
	case !c.Operator.IsZero():
		return Domain{Key: c.Operator}
	}
	return Domain{Key: c.Key}
}

// String is the domain in words for people.
func (d Domain) String() string {
	if d.Name != "" {
		return d.Name
	}
	return d.Key.String()
}

// drawn is a node in the order of one instance.
type drawn struct {
	key    stmt.Key
	domain Domain
	score  uint64
	weight uint64
}

// byDraw orders by score/weight. Without division: a score is below 2^47 and a
// weight at most 2^16, so the products fit.
func byDraw(a, b drawn) int {
	return cmp.Or(cmp.Compare(a.score*b.weight, b.score*a.weight), a.key.Compare(b.key))
}

// spread orders nodes, given by draw, so that every domain gives its best one
// before any gives its second; used is how many a domain has given before.
//
// A node that leaves lets those of its domain come one round earlier and takes
// nobody back: so all that were among the first R still are.
func spread(list []drawn, used map[Domain]int) []stmt.Key {
	given := make(map[Domain]int, len(used)+1)
	type placed struct {
		key   stmt.Key
		round int
	}
	out := make([]placed, len(list))
	for i, d := range list {
		out[i] = placed{d.key, used[d.domain] + given[d.domain]}
		given[d.domain]++
	}
	slices.SortStableFunc(out, func(a, b placed) int { return cmp.Compare(a.round, b.round) })
	keys := make([]stmt.Key, len(out))
	for i, p := range out {
		keys[i] = p.key
	}
	return keys
}
