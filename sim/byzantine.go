package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/des"
)

// The owners of byzantine.
const (
	wary   = 0 // names the nodes that may run its instances
	trusty = 1 // lets every member
)

// openToAll has the wary owner name nobody.
const openToAll des.Mutant = "open-to-all"

// byzantine has a fifth of the nodes lie: two words of one number, old statements
// again, claims on slots that others serve and that they do not run, capacity that
// they do not have. The others agree, and keep what only they may run.
func byzantine(r *run) {
	r.Boot(des.Workload{})
	liars := r.rng.Perm(r.Nodes())[:r.Nodes()/5]
	slices.Sort(liars)
	var honest []stmt.Key
	for i := range r.Nodes() {
		if !slices.Contains(liars, i) && r.mutant != openToAll {
			honest = append(honest, r.Key(i))
		}
	}
	gone := r.shipAll(honest)
	r.settle(2 * time.Minute)
	for _, i := range liars {
		r.Corrupt(i)
	}
	before := r.servers(wary)
	for round := range 12 {
		r.lie(liars, gone)
		r.Run(time.Duration(1+r.rng.IntN(10)) * time.Second)
		for slot, on := range r.servers(wary) {
			if !slices.Equal(on, before[slot]) {
				r.fail("round %d: %.8s/%d, which only honest nodes may run, runs on %v, not %v", round, slot.Instance, slot.Slot, on, before[slot])
			}
		}
	}
	victim := before[plan.Slot{Instance: r.Instances(wary)[0].ID}][0]
	r.Crash(victim, true)
	r.Run(time.Minute)
	took, ok := r.RunUntil(4*time.Minute, time.Second, func() bool { return r.Converged() && r.allServed(wary) })
	if !ok {
		r.fail("%v after the last lie: all agree: %v, all served: %v", took+time.Minute, r.Converged(), r.allServed(wary))
	}
	r.CheckEqualViews()
	r.CheckAcknowledged()
	r.checkGone(gone)
	lost := 0
	for _, on := range r.servers(trusty) {
		if len(on) == 0 {
			lost++
		}
	}
	r.note("%d of %d nodes lie; of what every member may run they hold %d of %d replicas and run none", len(liars), r.Nodes(), lost, len(r.servers(trusty)))
	r.sometimes("a node equivocated", "a node replayed", "a node usurped", "a node boasted", "a replayed statement was nothing new")
}

// shipAll has both owners ship, and the wary one change and delete something.
func (r *run) shipAll(honest []stmt.Key) (gone string) {
	for n := range 6 {
		r.Ship(wary, 0, crdt.Spec{Name: fmt.Sprint("wary-", n), Pack: des.PackName(100 + n), Replicas: 2, Operators: honest})
		r.Ship(trusty, 0, crdt.Spec{Name: fmt.Sprint("trusty-", n), Pack: des.PackName(200 + n), Replicas: 2})
		r.Run(time.Second)
	}
	gone = r.Instances(wary)[5].ID
	r.Set(wary, 0, gone, func(s *crdt.Spec) { s.Replicas = 1 })
	r.Run(5 * time.Second)
	r.Delete(wary, 0, gone)
	return gone
}

// lie has each liar do one thing.
func (r *run) lie(liars []int, gone string) {
	huge := crdt.Resources{CPUs: 1024, Memory: 1 << 42, Disk: 1 << 46}
	for _, i := range liars {
		switch r.rng.IntN(4) {
		case 0:
			r.Equivocate(i, huge, crdt.Resources{CPUs: 1 + r.rng.IntN(8), Memory: 1 << 30, Disk: 1 << 33})
		case 1:
			r.Replay(i, 300, r.rng)
		case 2:
			slots := []plan.Slot{{Instance: gone}}
			for _, owner := range []int{wary, trusty} {
				for slot := range r.servers(owner) {
					slots = append(slots, slot)
				}
			}
			slices.SortFunc(slots, func(a, b plan.Slot) int {
				return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Slot, b.Slot))
			})
			r.Usurp(i, slots)
		case 3:
			huge.CPUs += r.rng.IntN(64)
			r.Boast(i, huge)
		}
	}
}

// servers are the honest nodes that run each replica of an owner.
func (r *run) servers(owner int) map[plan.Slot][]int {
	out := map[plan.Slot][]int{}
	honest := r.Honest()
	for _, s := range r.Instances(owner) {
		for n := range s.Replicas {
			slot := plan.Slot{Instance: s.ID, Slot: n}
			out[slot] = slices.DeleteFunc(r.Executing(slot), func(i int) bool { return !slices.Contains(honest, i) })
		}
	}
	return out
}

// allServed says whether each replica of an owner runs once.
func (r *run) allServed(owner int) bool {
	for _, on := range r.servers(owner) { // any order: all of them
		if len(on) != 1 {
			return false
		}
	}
	return true
}

// checkGone holds that an instance that was deleted runs nowhere.
func (r *run) checkGone(id string) {
	for slot := range 2 {
		if on := r.Executing(plan.Slot{Instance: id, Slot: slot}); len(on) > 0 {
			r.fail("%.8s/%d, which was deleted, runs on %v", id, slot, on)
		}
	}
}
