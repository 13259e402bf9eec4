package plan

import (
	"fmt"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// DefaultHysteresis is how long the ranking must prefer another node before a
// replica that runs moves there.
const DefaultHysteresis = 5 * time.Minute

// MoveBudget is how many replicas a node takes from others in a window of
// hysteresis, so that one that joins takes its share over slowly.
const MoveBudget = 4

// trialTime is how long a node keeps a slot whose replica does not do well here
// while another node's still serves it: longer than a boot may take.
const trialTime = bootLimit + time.Minute

// maxTries bounds the exponent of the pause after moves to no avail.
const maxTries = 6

// move takes over a slot that another node serves, when the ranking has preferred
// this node for a full window, and reports whether it did. The other serves on
// until the replica here is ready (see surplus).
func (p *planner) move(s *crdt.Spec, claims []crdt.Claim, busy bool) bool {
	if p.Hysteresis < 0 || busy || !p.accepts(s) {
		return false
	}
	to, from, ok := p.better(s, claims)
	if !ok || to != p.Self {
		return false
	}
	if due := p.moveDue(s, from.Slot); p.Now < due {
		p.wake(due)
		return false
	}
	delete(p.out.Timers.Preferred, Slot{s.ID, from.Slot})
	p.out.Timers.Moves = append(p.out.Timers.Moves, p.Now)
	p.out.Timers.Tries[s.ID]++
	p.take(s, claims, from.Slot)
	return true
}

// moveDue is when this node, which the ranking prefers, may take a slot.
func (p *planner) moveDue(s *crdt.Spec, slot int) time.Duration {
	due := first(p.Timers.Preferred, p.out.Timers.Preferred, Slot{s.ID, slot}, p.Now) + p.Hysteresis<<min(p.Timers.Tries[s.ID], maxTries)
	if n := len(p.out.Timers.Moves); n >= MoveBudget {
		due = max(due, p.out.Timers.Moves[n-MoveBudget]+p.Hysteresis)
	}
	return due
}

// better says which node the ranking prefers to one that serves a slot of s, and
// the claim of that one: the best that has no slot instead of the worst that has.
// Nothing is better while anything about the instance is under way, so one
// replica moves at a time.
//
// Moves come to an end: each puts the nodes of an instance, best first, before
// what they were in the order of place, which does not depend on what is free.
func (p *planner) better(s *crdt.Spec, claims []crdt.Claim) (to stmt.Key, from crdt.Claim, ok bool) {
	holds, steady := p.World.steady(s, claims)
	if !steady {
		return to, from, false
	}
	able := func(n *crdt.Node) bool {
		_, has := holds[n.Key]
		return p.World.present(n) && (has || full(n, p.takes(n.Key), s) == "")
	}
	ranked := 0
	for i := range p.World.order(s, able) {
		k := p.World.Nodes[i].Key
		c, has := holds[k]
		switch {
		case has:
			from = c // the worst is the last
			delete(holds, k)
		case ranked < s.Replicas && !ok:
			to, ok = k, true
		}
		if ranked++; len(holds) == 0 || ranked >= s.Replicas && !ok {
			break
		}
	}
	return to, from, ok
}

// steady says whether every slot of s is served as its owner wants it by one node
// that may stay, and by which; nobody else has a claim on s. Only under the
// contract "keep" may two nodes run a slot for the time of a move. An instance of
// one replica stays: what its disk holds is nowhere else.
func (w World) steady(s *crdt.Spec, claims []crdt.Claim) (map[stmt.Key]crdt.Claim, bool) {
	if s.Replicas < 2 || s.Partition != "" && s.Partition != "keep" {
		return nil, false
	}
	out := make(map[stmt.Key]crdt.Claim, s.Replicas)
	slots := make(map[int]bool, s.Replicas)
	for _, c := range claims {
		switch {
		case w.dead(c.Node):
		case !w.holds(s, c) || !c.Ready || c.SpecGeneration < s.Generation || c.Slot >= s.Replicas || slots[c.Slot]:
			return nil, false
		default:
			out[c.Node], slots[c.Slot] = c, true
		}
	}
	return out, len(slots) == s.Replicas && len(out) == s.Replicas
}

// onTrial gives a slot back that another node still serves, when its replica has
// not done well here for long, and reports whether it did.
func (p *planner) onTrial(s *crdt.Spec, c crdt.Claim, holders []crdt.Claim) bool {
	vm, there := p.VMs[VMID(c.Instance, c.Slot)]
	if vm.Ready {
		delete(p.out.Timers.Tries, s.ID)
	}
	if s.Phase == crdt.PhaseStopped || !there || vm.Ready {
		return false
	}
	for _, o := range holders {
		if o.Node == p.Self || !o.Ready {
			continue
		}
		end := first(p.Timers.Trials, p.out.Timers.Trials, Slot{c.Instance, c.Slot}, p.Now) + trialTime
		if p.Now < end {
			p.wake(end)
			return false
		}
		p.drain(c, fmt.Sprintf("it does not do well here: %s goes on with this replica", o.Node))
		return true
	}
	return false
}

// tries are the counts of instances that are still there.
func (t Timers) tries(w World) map[string]int {
	out := map[string]int{}
	if len(t.Tries) == 0 {
		return out
	}
	live := w.lives()
	for id, n := range t.Tries { // any order: each by itself
		if n > 0 && live(id) {
			out[id] = n
		}
	}
	return out
}

// moves are those of the last window. The result is a new slice.
func (t Timers) moves(now, window time.Duration) []time.Duration {
	var out []time.Duration
	for _, at := range t.Moves {
		if now-at < window {
			out = append(out, at)
		}
	}
	return out
}
