package des

import (
	"maps"
	"slices"
	"time"

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
	voters []stmt.Key          // of instances whose contract counts them
}

// view is what n holds.
func (n *node) view() *worldView {
	if n.sim.cfg.Mutant == StaleViews && n.i%4 == 0 {
		if n.stale == nil {
			n.stale = n.sim.viewOf(n.h)
		}
		return n.stale
	}
	return n.sim.viewOf(n.h)
}

func (s *Sim) viewOf(h *held) *worldView {
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
	for i := range w.world.Instances {
		w.voters = append(w.voters, w.world.Instances[i].Voters...)
	}
	slices.SortFunc(w.voters, stmt.Key.Compare)
	w.voters = slices.Compact(w.voters)
	h.world = w
	return w
}

// world is what n decides on.
func (n *node) world() plan.World {
	w := n.view()
	if w.alien[n.key] {
		return n.probed(plan.WorldOf(w.view, n.key, n.dead))
	}
	return n.probed(w.world)
}

// probed adds what n found by itself.
func (n *node) probed(w plan.World) plan.World {
	w.Ranks = &n.sim.ranks // shared: it holds no decision
	w.Dead = n.dead
	if voters := n.view().voters; len(voters) > 0 {
		w.Seen = make(map[stmt.Key]bool, len(voters))
		for _, k := range voters {
			w.Seen[k] = k == n.key || n.sees(k) || n.sim.cfg.Mutant == NoVoters
		}
		if n.sim.cfg.Mutant == NoVoters {
			w.Dead = maps.Clone(n.dead)
			maps.DeleteFunc(w.Dead, func(k stmt.Key, _ time.Duration) bool { return slices.Contains(voters, k) })
		}
	}
	return w
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
