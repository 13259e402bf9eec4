package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/des"
)

// sixth is how many millionths from true time two clocks may run, so that they are
// within one sixth of each other (docs/partitions.md).
const sixth = 1_000_000 / 13

// voters of an instance whose contract counts them.
const voters = 3

// fencePartition has partitions roll over a swarm that holds leases, while those
// who hold them crash, sleep and are stopped. That one machine of an instance runs
// at most is held at every event.
func fencePartition(r *run) {
	r.Boot(des.Workload{Instances: 4, Replicas: 2, Partition: crdt.PartitionFence, Voters: voters})
	r.Run(20 * time.Second)
	for _, un := range r.Unserved() {
		r.fail("at first: %s", un)
	}
	for range 50 {
		r.trouble()
		r.Run(time.Duration(r.rng.IntN(20_000)) * time.Millisecond)
	}
	r.Heal()
	for i := range r.Nodes() {
		r.Start(i)
	}
	r.settle(5 * time.Minute)
	all, _ := r.Takeovers()
	r.note("%d partitions, %d crashes, %d sleeps, %d stops; %d takeovers, %d times a machine was paused and went on",
		r.Seen["partition"], r.Seen["crash"], r.Seen["suspend"], r.Seen["stall"], all, r.Seen["a paused machine went on"])
	r.sometimes("partition", "crash", "suspend", "stall", "a sleep was noticed", "a paused machine went on")
	if all == 0 {
		r.fail("nothing was taken over")
	}
}

// sometimes holds that what a scenario is about has happened.
func (r *run) sometimes(what ...string) {
	for _, w := range what {
		if r.Seen[w] == 0 {
			r.fail("never: %s", w)
		}
	}
}

// trouble does one thing, to those that run something above all.
func (r *run) trouble() {
	i := r.victim()
	switch r.rng.IntN(9) {
	case 0, 1:
		r.split(func(n int) bool { return n == i || r.rng.IntN(2) == 0 })
	case 2:
		r.split(func(n int) bool { return n == i })
	case 3:
		r.Heal()
	case 4:
		r.bounce(i, r.rng.IntN(2) == 0)
	case 5:
		r.Suspend(i, time.Duration(1+r.rng.IntN(90))*time.Second)
	case 6:
		r.Stall(i, time.Duration(1+r.rng.IntN(90))*time.Second)
	case 7: // one is cut off, and all others are restarted
		r.split(func(n int) bool { return n == i })
		for n := range r.Nodes() {
			if n != i {
				r.bounce(n, false)
			}
		}
	case 8: // a disk is replaced
		r.Crash(i, true)
		r.LoseVotes(i)
		r.Start(i)
	}
}

// victim draws a node, three times in four of those that run something.
func (r *run) victim() int {
	var on []int
	for _, nodes := range r.Placement() {
		on = append(on, nodes...)
	}
	slices.Sort(on)
	if len(on) > 0 && r.rng.IntN(4) > 0 {
		return on[r.rng.IntN(len(on))]
	}
	return r.rng.IntN(r.Nodes())
}

// split cuts those nodes off from the others.
func (r *run) split(away func(n int) bool) {
	var sides [2][]int
	for n := range r.Nodes() {
		side := 0
		if away(n) {
			side = 1
		}
		sides[side] = append(sides[side], n)
	}
	r.Partition(sides[0], sides[1])
}

// bounce crashes a node, which comes back within seconds.
func (r *run) bounce(n int, machine bool) {
	r.Crash(n, machine)
	r.Do(time.Duration(1+r.rng.IntN(8000))*time.Millisecond, func() { r.Start(n) })
}

// splits is how often a swarm is split in a scenario.
const splits = 3

// What a side of a split takes: to find that nodes are gone, to stop a guest, and
// to have its replicas back, the ranks waiting one after the other.
const (
	detection = 13 * time.Second // of who reaches nobody, and so doubts itself first; else 10
	shutdown  = 2 * time.Second
	recovery  = 2 * time.Minute
)

// stopMinorityPartition splits a swarm, again and again: the side that sees most of
// an instance's voters has its replicas, the other none.
func stopMinorityPartition(r *run) {
	r.Boot(des.Workload{Instances: 2 * r.Nodes() / 3, Replicas: 2, Partition: crdt.PartitionStopMinority, Voters: voters})
	r.Run(20 * time.Second)
	for round := range splits {
		minority := r.halve(round)
		r.Run(detection + shutdown)
		stopped, kept := 0, 0
		for _, s := range r.Instances(0) {
			lone := r.minorityOf(s, minority)
			for slot := range s.Replicas {
				on := r.Executing(plan.Slot{Instance: s.ID, Slot: slot})
				for _, n := range on {
					if slices.Contains(minority, n) == lone {
						r.fail("%.8s/%d runs on n%d, which sees too few of its voters for %v", s.ID, slot, n, detection+shutdown)
					} else {
						kept++
					}
				}
				if len(on) == 0 {
					stopped++
				}
			}
		}
		r.note("%d replicas run where most voters are, %d wait for a takeover", kept, stopped)
		r.Run(recovery - detection - shutdown)
		for _, s := range r.Instances(0) {
			r.servedOn(s, minority, !r.minorityOf(s, minority))
		}
		r.Heal()
		r.settle(3 * time.Minute)
	}
}

// minorityOf says whether the voters of s are on the larger side of a split, so
// that the smaller one is the minority.
func (r *run) minorityOf(s crdt.Spec, smaller []int) bool {
	n := 0
	for _, i := range smaller {
		if slices.Contains(s.Voters, r.Key(i)) {
			n++
		}
	}
	return 2*n <= len(s.Voters)
}

// halve splits a swarm by lot and returns the smaller side: at first one node.
func (r *run) halve(round int) []int {
	smaller := r.rng.Perm(r.Nodes())[:1+round*(r.Nodes()/2-1)/(splits-1)]
	slices.Sort(smaller)
	r.split(func(n int) bool { return slices.Contains(smaller, n) })
	return smaller
}

// servedOn holds that every replica runs once on one side of a split.
func (r *run) servedOn(s crdt.Spec, smaller []int, onSmaller bool) {
	room := r.Nodes() - len(smaller)
	if onSmaller {
		room = len(smaller)
	}
	served := 0
	for slot := range s.Replicas {
		on := r.Executing(plan.Slot{Instance: s.ID, Slot: slot})
		on = slices.DeleteFunc(on, func(n int) bool { return slices.Contains(smaller, n) != onSmaller })
		served += min(len(on), 1) // a second one is on its way out
	}
	if want := min(s.Replicas, room); served < want {
		r.fail("%d of %d replicas of %.8s run on the side of %v (smaller: %v)", served, want, s.ID, smaller, onSmaller)
	}
}

// keepPartition splits a swarm, again and again: both sides have all replicas, and
// the surplus goes when they meet.
func keepPartition(r *run) {
	r.Boot(des.Workload{Instances: 2 * r.Nodes() / 3, Replicas: 2})
	r.Run(20 * time.Second)
	for round := range splits {
		smaller := r.halve(round)
		r.Run(recovery)
		for _, s := range r.Instances(0) {
			r.servedOn(s, smaller, true)
			r.servedOn(s, smaller, false)
		}
		r.Heal()
		r.settle(3 * time.Minute)
	}
	all, _ := r.Takeovers()
	r.note("%d takeovers", all)
}

// laptopSleep has machines sleep, and daemons be stopped, for minutes, while
// others take over, and owners change what they want.
func laptopSleep(r *run) {
	r.Boot(des.Workload{Instances: r.Nodes(), Replicas: 2})
	r.Run(20 * time.Second)
	for round := range 8 {
		i := r.victim()
		d := time.Duration(10+r.rng.IntN(170)) * time.Second
		if r.rng.IntN(2) == 0 {
			r.Suspend(i, d)
		} else {
			r.Stall(i, d)
		}
		if o := r.rng.IntN(r.Nodes()); o != i && r.rng.IntN(3) == 0 {
			r.Do(time.Duration(r.rng.IntN(10_000))*time.Millisecond, func() { r.Crash(o, true) })
			r.Do(d+time.Duration(r.rng.IntN(60_000))*time.Millisecond, func() { r.Start(o) })
		}
		if up := r.Reachable(); len(up) > 0 {
			at := up[r.rng.IntN(len(up))]
			if at != i && r.Up(at) {
				r.Ship(0, at, crdt.Spec{Name: fmt.Sprint("new-", round), Pack: des.PackName(900 + round), Replicas: 2})
			}
		}
		r.Run(time.Duration(5+r.rng.IntN(80)) * time.Second)
	}
	r.Run(3 * time.Minute)
	for i := range r.Nodes() {
		r.Start(i)
	}
	r.settle(5 * time.Minute)
	all, _ := r.Takeovers()
	r.note("%d sleeps and %d stops, %d noticed; %d takeovers, none by who slept of what another served",
		r.Seen["suspend"], r.Seen["stall"], r.Seen["a sleep was noticed"], all)
	r.sometimes("suspend", "stall", "a sleep was noticed")
	if all == 0 {
		r.fail("nobody took over from those who slept")
	}
	if n := r.Usurped(); n > 0 {
		r.fail("%d slots were taken by who slept from who served", n)
	}
}
