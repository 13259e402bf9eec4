package des

import (
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// worldView is what decisions read of one View, made once for all nodes that
// hold its state.
type worldView struct {
	view   *crdt.View
	world  plan.World
	keys   []stmt.Key
	epochs map[stmt.Key]uint64 // boot epochs
	alien  map[stmt.Key]bool   // have claims on instances that the view does not know
}

// view is what n holds.
func (n *node) view() *worldView {
	h := n.h
	if h.world != nil {
		return h.world
	}
	v := h.state.View()
	w := &worldView{view: v, world: plan.WorldOf(v, stmt.Key{}, nil), alien: map[stmt.Key]bool{}, epochs: map[stmt.Key]uint64{}}
	for _, node := range v.Nodes() {
		w.keys = append(w.keys, node.Key)
		w.epochs[node.Key] = node.Epoch
		for _, c := range v.ClaimsBy(node.Key) {
			if _, known := w.world.Claims[c.Instance]; !known {
				w.alien[node.Key] = true
			}
		}
	}
	h.world = w
	return w
}

// world is what n decides on.
func (n *node) world() plan.World {
	w := n.view()
	if w.alien[n.key] {
		out := plan.WorldOf(w.view, n.key, n.dead)
		out.Ranks = &n.sim.ranks
		return out
	}
	out := w.world
	out.Ranks = &n.sim.ranks // shared: it holds no decision
	out.Dead = n.dead
	return out
}

// need is what the claims of a node take.
func need(w plan.World, claims []crdt.Claim) crdt.Resources {
	var sum crdt.Resources
	for _, c := range claims {
		i, ok := slices.BinarySearchFunc(w.Instances, c.Instance, func(s crdt.Spec, id string) int {
			switch {
			case s.ID < id:
				return -1
			case s.ID > id:
				return 1
			}
			return 0
		})
		if !ok || c.Phase == crdt.ClaimFailed {
			continue
		}
		r := place.Need(w.Instances[i])
		sum.CPUs, sum.Memory, sum.Disk = sum.CPUs+r.CPUs, sum.Memory+r.Memory, sum.Disk+r.Disk
	}
	return sum
}
