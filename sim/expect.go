package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/des"
)

// What a scenario may expect, beside what des holds at every event.
const (
	Settles       des.Invariant = "settles"               // all agree, and each replica runs once, within a time
	Agrees        des.Invariant = "agrees"                // all agree within a time
	Deaths        des.Invariant = "deaths-confirmed"      // who may take over knows of a death within a time
	Alive         des.Invariant = "no-false-death"        // nobody is taken for dead who is up and reachable
	Moves         des.Invariant = "moves-only-the-lost"   // what need not move does not
	Takeovers     des.Invariant = "takeovers"             // there are some, or none, as the scenario says
	Budget        des.Invariant = "takeover-budget"       // no node takes over more in a minute than it may
	SideServes    des.Invariant = "side-serves"           // the side of a split that may serve does
	SideStops     des.Invariant = "side-stops"            // the side that may not does not
	Slept         des.Invariant = "sleepers-take-nothing" // who slept takes nothing from who served
	DeletedGone   des.Invariant = "deleted-stays-gone"    // what was deleted does not run again
	OperatorsOnly des.Invariant = "operators-only"        // who is not named does not run it
	Always        des.Invariant = "served-always"         // what ran runs somewhere all the while
	Delivery      des.Invariant = "delivery-p99"          // statements come to all nodes within a time
	Sends         des.Invariant = "sends"                 // a node sends not too many messages for each
	Sometimes     des.Invariant = "sometimes"             // what a scenario is about has happened
	SameHash      des.Invariant = "same-hash"             // a seed gives the same events again
)

// deletion is how long after the last step what was deleted has ended.
const deletion = 30 * shutdown

// graphEvery is how often connections are looked at, which costs as much as there are.
const graphEvery = 5 * time.Second

// watch looks at what is to be true meanwhile.
func (r *run) watch() {
	e := r.plan.Expect
	if r.Now()-r.graph >= graphEvery {
		r.graph = r.Now()
		r.CheckConnected()
	}
	for _, owner := range r.contracts() {
		for _, s := range owner {
			if e.Stops > 0 && r.Now()-r.calm > e.Stops {
				r.sideStops(s)
			}
			if e.Sides > 0 && r.Now()-r.calm > e.Sides {
				r.sideServes(s)
			}
		}
	}
	if r.Now()-r.calm > deletion && !r.Split() { // who is cut off cannot know
		for _, id := range sortedKeys(r.deleted) {
			for slot := range 3 {
				if on := r.honest(plan.Slot{Instance: id, Slot: slot}); len(on) > 0 {
					r.fail(DeletedGone, "%.8s/%d, which was deleted, runs on %v", id, slot, on)
				}
			}
		}
	}
	if len(r.plan.Liars) > 0 {
		r.operatorsOnly()
	}
	if peak := r.TakeoverPeak(); e.Budget && peak > max(plan.TakeoverBudget, r.peak) {
		r.peak = peak
		r.fail(Budget, "%d takeovers of one node in a minute, the budget is %d", peak, plan.TakeoverBudget)
	}
	if e.Always {
		for _, slot := range sortedSlots(r.before) {
			if len(r.Executing(slot)) == 0 {
				r.fail(Always, "%.8s/%d, which ran on %v, runs nowhere", slot.Instance, slot.Slot, r.before[slot])
			}
		}
	}
}

// contracts are the instances of every owner while the swarm is split.
func (r *run) contracts() (out [][]crdt.Spec) {
	if r.smaller == nil || r.plan.Expect.Sides == 0 && r.plan.Expect.Stops == 0 {
		return nil
	}
	for owner := range r.Owners() {
		out = append(out, r.Instances(owner))
	}
	return out
}

// honest are the honest nodes on which a replica runs at this moment.
func (r *run) honest(slot plan.Slot) []int {
	honest := r.Honest()
	return slices.DeleteFunc(r.Executing(slot), func(i int) bool { return !slices.Contains(honest, i) })
}

// minorityOf says whether most voters of s are on the larger side of a split.
func (r *run) minorityOf(s crdt.Spec) bool {
	n := 0
	for _, i := range r.smaller {
		if slices.Contains(s.Voters, r.Key(i)) {
			n++
		}
	}
	return 2*n <= len(s.Voters)
}

// sideStops holds that nothing runs where too few voters are.
func (r *run) sideStops(s crdt.Spec) {
	if s.Partition != crdt.PartitionStopMinority {
		return
	}
	lone := r.minorityOf(s)
	for slot := range s.Replicas {
		for _, n := range r.Executing(plan.Slot{Instance: s.ID, Slot: slot}) {
			if slices.Contains(r.smaller, n) == lone {
				r.fail(SideStops, "%.8s/%d runs on n%d, which has seen too few of its voters for %v", s.ID, slot, n, r.plan.Expect.Stops)
			}
		}
	}
}

// sideServes holds that every replica runs where its contract has it run.
func (r *run) sideServes(s crdt.Spec) {
	sides := []bool{false, true}
	if s.Partition == crdt.PartitionStopMinority || s.Partition == crdt.PartitionFence {
		sides = []bool{!r.minorityOf(s)}
	}
	for _, small := range sides {
		room, served := r.Nodes()-len(r.smaller), 0
		if small {
			room = len(r.smaller)
		}
		active := s.Replicas
		if s.Partition == crdt.PartitionFence {
			active = 1
		}
		for slot := range active {
			on := slices.DeleteFunc(r.Executing(plan.Slot{Instance: s.ID, Slot: slot}), func(n int) bool { return slices.Contains(r.smaller, n) != small })
			served += min(len(on), 1) // a second one is on its way out
		}
		if len(r.Holders(s.Pack, func(n int) bool { return slices.Contains(r.smaller, n) == small })) == 0 {
			continue // nobody there can run what nobody there has
		}
		if want := min(active, room); served < want {
			r.fail(SideServes, "%d of %d replicas of %.8s run on the side of %v (smaller: %v)", served, want, s.ID, r.smaller, small)
		}
	}
}

// operatorsOnly holds that nobody who lies has a replica that it may not run, in the
// eyes of those that may: they run it themselves.
func (r *run) operatorsOnly() {
	for _, slot := range sortedSlots(r.before) {
		if r.exposed[slot.Instance] || r.gone[slot.Instance] || !r.undisturbed(r.before[slot]) {
			continue
		}
		if on := r.honest(slot); !slices.Equal(on, r.before[slot]) {
			r.fail(OperatorsOnly, "%.8s/%d, which only honest nodes may run, runs on %v, not on %v", slot.Instance, slot.Slot, on, r.before[slot])
		}
	}
}

// undisturbed says whether none of these was down since the first fault.
func (r *run) undisturbed(nodes []int) bool {
	return !slices.ContainsFunc(nodes, func(i int) bool { return slices.Contains(r.touched, i) })
}

// judge holds a run to what its scenario expects of it in the end.
func (r *run) judge() {
	e := r.plan.Expect
	all, wrong := r.Takeovers()
	r.note("%d takeovers, %d of them from who was up, at most %d of one node in a minute; %d false deaths", all, wrong, r.TakeoverPeak(), r.FalseDeaths())
	for _, c := range r.Confirmations() {
		if e.Deaths > 0 && c.Ranked && c.After > e.Deaths {
			r.fail(Deaths, "n%d confirmed the death of n%d after %v", c.By, c.Of, c.After)
		}
	}
	if e.Alive && r.FalseDeaths() > 0 {
		r.fail(Alive, "%d nodes that were up and reachable were taken for dead", r.FalseDeaths())
	}
	if e.Takeovers == "none" && all > 0 || e.Takeovers == "some" && all == 0 {
		r.fail(Takeovers, "%d, where there are to be %s", all, e.Takeovers)
	}
	r.delivery()
	if n := r.Usurped(); e.Slept && n > 0 {
		r.fail(Slept, "%d slots were taken by who slept from who served", n)
	}
	if e.Moves != "" {
		r.moves()
	}
	for _, w := range r.plan.Sometimes {
		if r.Seen[w] == 0 {
			r.fail(Sometimes, "never: %s", w)
		}
	}
	for _, w := range sortedKeys(r.Seen) {
		r.note("%s: %d", w, r.Seen[w])
	}
}

// delivery holds how statements come to all to what that may take.
func (r *run) delivery() {
	e := r.plan.Expect
	if e.Delivery == 0 && e.Sends == 0 {
		return
	}
	m := r.observer.metrics()
	if m.Convergence.Count == 0 {
		r.fail(Delivery, "no statement came to all nodes: nothing was measured")
		return
	}
	if p99 := time.Duration(m.Convergence.P99) * time.Microsecond; e.Delivery > 0 && p99 > e.Delivery {
		r.fail(Delivery, "all nodes have a statement after %v, the 99th of a hundred, allowed are %v", p99, e.Delivery)
	}
	if e.Sends > 0 && m.Sends > e.Sends {
		r.fail(Sends, "a node sends %.2f messages for each statement, allowed are %.2f", m.Sends, e.Sends)
	}
}

// moves holds that what had no need to move did not.
func (r *run) moves() {
	after := r.Placement()
	for _, slot := range sortedSlots(r.before) {
		on := r.before[slot]
		if r.exposed[slot.Instance] || r.gone[slot.Instance] || slices.Equal(on, after[slot]) {
			continue
		}
		if r.plan.Expect.Moves == "none" || r.undisturbed(on) {
			r.fail(Moves, "%.8s/%d from %v to %v", slot.Instance, slot.Slot, on, after[slot])
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func sortedSlots[V any](m map[plan.Slot]V) []plan.Slot {
	out := make([]plan.Slot, 0, len(m))
	for s := range m {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b plan.Slot) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Slot, b.Slot))
	})
	return out
}

// Compare holds that another run of the same plan gave the same events.
func (r *Result) Compare(again *Result) {
	if r.Hash != again.Hash {
		r.Bad = append(r.Bad, des.Broken{Of: SameHash, At: r.Virtual, What: fmt.Sprintf("%s, and %s the second time", r.Hash, again.Hash)})
	}
}
