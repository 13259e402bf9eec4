package plan

import (
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// smallSwarm is the number of nodes up to which everybody is of interest.
const smallSwarm = 16

// interestDepth is how many nodes beside the preferred ones watch the holders of
// an instance: the first ranks act first, and one of them suffices.
const interestDepth = 3

// Interest lists the nodes whose death this node might have to act upon, by key:
// the holders of slots that this node ranks highly for, and those that vote on
// such an instance or on one that runs here. In a small swarm that is everybody.
func Interest(w World, self stmt.Key) []stmt.Key {
	set := map[stmt.Key]bool{}
	if w.Ranks == nil {
		w.Ranks = &Ranks{}
	}
	if len(w.Nodes) <= smallSwarm {
		for i := range w.Nodes {
			set[w.Nodes[i].Key] = true
		}
	} else {
		for i := range w.watches(self) {
			s := &w.Instances[i]
			ranks := w.among(firstOf(w.order(s, w.present), interestDepth+s.Replicas), self)
			if counts(s) && (ranks || w.claimed(s, self)) {
				for _, k := range s.Voters {
					set[k] = true
				}
			}
			if !ranks {
				continue
			}
			for _, c := range w.Claims[s.ID] {
				if c.Slot < active(s).Replicas {
					set[c.Node] = true
				}
			}
		}
	}
	delete(set, self)
	out := make([]stmt.Key, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.SortFunc(out, stmt.Key.Compare)
	return out
}
