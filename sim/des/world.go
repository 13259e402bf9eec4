package des

import (
	"maps"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
)

// worldView is what decisions read of one View, made once for all nodes that
// hold its state.
type worldView struct {
	view   *crdt.View
	world  plan.World
	roster *roster
	alien  map[stmt.Key]bool // have claims on instances that the view does not know
	voters []stmt.Key        // of instances whose contract counts them
	briefs map[uint64]plan.World
	before *worldView // of the same state, when that was another; nil: it was none
}

// roster is what the detectors are told of lists of nodes, made once for all that say it.
type roster struct {
	keys   []stmt.Key
	epochs map[stmt.Key]uint64 // boot epochs
}

// listing is a list of nodes, kept once for all Views that say the same.
type listing struct {
	of []crdt.Node
	*roster
}

// listings is how many lists of nodes are remembered; forgetting costs only work.
const listings = 8

func (s *Sim) listingOf(nodes []crdt.Node) listing {
	for _, l := range s.listings {
		if len(l.of) == len(nodes) && (len(nodes) == 0 || &l.of[0] == &nodes[0] || slices.EqualFunc(l.of, nodes, sameNode)) {
			return l
		}
	}
	l := listing{of: nodes, roster: s.rosterOf(nodes)}
	s.listings = append(s.listings[max(0, len(s.listings)-listings+1):], l)
	return l
}

func (s *Sim) rosterOf(nodes []crdt.Node) *roster {
	for _, l := range s.listings {
		if slices.EqualFunc(l.of, nodes, func(a, b crdt.Node) bool { return a.Key == b.Key && a.Epoch == b.Epoch }) {
			return l.roster
		}
	}
	r := &roster{epochs: make(map[stmt.Key]uint64, len(nodes))}
	for i := range nodes {
		r.keys = append(r.keys, nodes[i].Key)
		r.epochs[nodes[i].Key] = nodes[i].Epoch
	}
	return r
}

// sameNode compares a list of all nodes with another: those that differ do so by what
// their registers begin with, unless somebody said two things by one number.
func sameNode(a, b crdt.Node) bool {
	return a.Key == b.Key && a.Epoch == b.Epoch && a.Seq == b.Seq && a.Total == b.Total && a.Draining == b.Draining &&
		a.Operator == b.Operator && a.Region == b.Region && a.GPU == b.GPU && a.Version == b.Version && a.Restarts == b.Restarts &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Holds, b.Holds)
}

// briefed is the world of those who have confirmed these nodes dead, who say the same
// by print: it is made once for all of them.
func (w *worldView) briefed(ranks *plan.Ranks, dead map[stmt.Key]time.Duration, print uint64) plan.World {
	b, made := w.briefs[print]
	if !made {
		b = w.world
		b.Ranks, b.Dead = ranks, maps.Clone(dead)
		var before plan.World
		if w.before != nil {
			before = w.before.briefs[print]
		}
		b = b.Briefed(before)
		w.briefs[print] = b
	}
	return b
}

// deadPrint names the set of nodes that n has confirmed dead.
func (n *node) deadPrint() uint64 {
	if len(n.dead) == 0 {
		return 0
	}
	var sum uint64
	for k := range n.dead { // any order: the sum commutes
		sum += chance.Mix(useWorld, uint64(n.sim.index[k])+1)
	}
	return sum
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
	w := &worldView{view: v, world: plan.WorldOf(v, stmt.Key{}, nil), alien: map[stmt.Key]bool{}, briefs: map[uint64]plan.World{}}
	nodes := s.listingOf(v.Nodes())
	w.world.Nodes, w.world.Stamped, w.roster = nodes.of, true, nodes.roster
	for _, c := range v.Unlisted() {
		w.alien[c.Node] = true
	}
	for _, spec := range v.Instances() {
		if !v.OwnerAllowed(spec.Owner) {
			for _, c := range v.Claims(spec.ID) {
				w.alien[c.Node] = true
			}
		}
	}
	for i := range w.world.Instances {
		w.voters = append(w.voters, w.world.Instances[i].Voters...)
	}
	slices.SortFunc(w.voters, stmt.Key.Compare)
	w.voters = slices.Compact(w.voters)
	if w.before = h.past; w.before != nil {
		w.before.before = nil
	}
	h.world, h.past = w, w
	return w
}

// world is what n decides on.
func (n *node) world() plan.World {
	w := n.view()
	switch {
	case w.alien[n.key]:
		return n.probed(plan.WorldOf(w.view, n.key, n.dead))
	case n.sim.cfg.Mutant == NoVoters: // which has others dead than the node knows
		return n.probed(w.world)
	}
	return n.probed(w.briefed(&n.sim.ranks, n.dead, n.deadPrint()))
}

// whole is the same without a Brief.
func (n *node) whole() plan.World { return n.probed(plan.WorldOf(n.view().view, n.key, n.dead)) }

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
