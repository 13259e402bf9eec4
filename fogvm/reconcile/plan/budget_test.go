package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// fleet is n large nodes that serve an instance of one replica each, k a node,
// with packs of their own of so many bytes.
func fleet(n, k int, bytes int64) *cluster {
	c := newCluster(n)
	c.tick, c.bytes = time.Second, map[string]int64{}
	for _, n := range c.nodes {
		n.reg.Total = crdt.Resources{CPUs: 256, Memory: 256 << 30, Disk: 4 << 40}
	}
	for i := range n * k {
		pack := fmt.Sprint("p", i)
		c.bytes[pack] = bytes
		c.ship(fmt.Sprint("app", i), 1, pack)
	}
	c.run(20 * time.Second)
	return c
}

// placed is which node serves each instance.
func (c *cluster) placed() map[string]int {
	out := map[string]int{}
	for id := range c.specs {
		out[id] = c.holder(id, 0)
	}
	return out
}

// Killing one of ten nodes moves only its replicas.
func TestDeathMovesOnlyItsReplicas(t *testing.T) {
	c := fleet(10, 6, 1<<20)
	before := c.placed()
	const victim = 4
	c.kill(victim, true)
	c.run(2 * time.Minute)
	lost := 0
	for id, at := range c.placed() {
		switch {
		case before[id] == 0 || at == 0:
			t.Errorf("%s is served by nobody", id)
		case before[id] == victim:
			lost++
		case at != before[id]:
			t.Errorf("%s moved from n%d to n%d when n%d died", id, before[id], at, victim)
		}
	}
	if lost == 0 {
		t.Fatal("the dead node served nothing")
	}
	t.Logf("%d of %d replicas moved", lost, len(before))
}

// Stopping and starting a node within the takeover delay moves nothing, and no
// machine boots again.
func TestRestartMovesNothing(t *testing.T) {
	c := fleet(10, 6, 1<<20)
	before, log := c.placed(), c.log.Len()
	c.kill(4, false)
	c.run(detect + DefaultTakeoverDelay - 2*time.Second)
	c.start(4)
	c.run(2 * time.Minute)
	for id, at := range c.placed() {
		if at != before[id] {
			t.Errorf("%s moved from n%d to n%d", id, before[id], at)
		}
	}
	for id, vm := range c.node(4).vms {
		if vm.boots != 1 {
			t.Errorf("%s booted %d times", id, vm.boots)
		}
	}
	if t.Failed() {
		t.Log(c.log.String()[log:])
	}
}

// A switch takes a third of the fleet away for some minutes. Every node stays
// within its budget in every minute, of slots and of bytes; when the switch is
// back every replica is served once.
func TestSwitchRebootStaysWithinTheBudget(t *testing.T) {
	for name, bytes := range map[string]int64{"small packs": 1 << 20, "large packs": 400 << 20} {
		t.Run(name, func(t *testing.T) {
			c := fleet(6, 40, bytes)
			c.hysteresis = -1 // that is another budget
			before := c.placed()
			for id := 1; id <= 2; id++ {
				c.kill(id, false)
			}
			taken := map[int][]int{} // by node, the replicas it holds at each second
			most, bytesMost := 0, int64(0)
			for range 180 {
				c.run(time.Second)
				for _, n := range c.nodes[2:] {
					taken[n.id] = append(taken[n.id], len(n.claims))
					if k := len(taken[n.id]); k > 60 {
						most = max(most, len(n.claims)-taken[n.id][k-61])
					}
					var spent int64
					for _, r := range n.timers.Repairs {
						spent += r.Bytes
					}
					bytesMost = max(bytesMost, spent)
				}
			}
			if most == 0 || most > TakeoverBudget {
				t.Errorf("a node took %d slots over in a minute, the budget is %d", most, TakeoverBudget)
			}
			// What turns out larger than was guessed shows when it has begun.
			if over := guesses * max(0, bytes-unknownPack); bytesMost > RepairBytes+over {
				t.Errorf("a node began to fetch %d MiB in a minute, the budget is %d", bytesMost>>20, int64(RepairBytes>>20))
			}
			moved := 0
			for id, at := range c.placed() {
				if at != before[id] && at != 0 {
					moved++
				}
				if before[id] > 2 && at != before[id] {
					t.Errorf("%s was on n%d, which never went away, and is on n%d", id, before[id], at)
				}
			}
			t.Logf("%d of %d replicas moved in 3 minutes; at most %d slots and %d MiB a node and minute", moved, len(before), most, bytesMost>>20)
			for id := 1; id <= 2; id++ {
				c.start(id)
			}
			c.run(30 * time.Second)
			for _, bad := range append(c.bad, c.settled()...) {
				t.Error(bad)
			}
		})
	}
}

// The budget of bytes: what is here costs nothing, a known size counts, another
// is guessed until it is known, and one pack a minute may always begin.
func TestRepairBytes(t *testing.T) {
	now := 10 * time.Minute
	for _, tc := range []struct {
		name  string
		size  int64
		packs PackState
		want  int // of 10 slots, at once
	}{
		{"small", 1 << 20, Absent, 10},
		{"half of the budget", RepairBytes / 2, Absent, 2},
		{"more than the budget", 3 * RepairBytes, Absent, 1},
		{"not known", 0, Absent, guesses},
		{"here", 3 * RepairBytes, Complete, 10},
		{"on its way", 3 * RepairBytes, Fetching, 10},
	} {
		w, _ := world3()
		w.Nodes[0].Total = crdt.Resources{CPUs: 100, Memory: 1 << 40, Disk: 1 << 40}
		w.Nodes = w.Nodes[:2]
		w.Dead[stmt.Key{2}] = now - 5*time.Minute
		proto := w.Instances[0]
		w.Instances = nil
		in := Input{Now: now - 5*time.Minute, Self: stmt.Key{1}, Packs: map[string]PackStatus{}}
		for i := range 10 {
			s := proto
			s.ID, s.Replicas, s.Pack = fmt.Sprint("i", i), 1, fmt.Sprint("p", i)
			w.Instances = append(w.Instances, s)
			c := claimOf(2, 0, crdt.ClaimRunning, true)
			c.Instance = s.ID
			w.Claims[s.ID] = []crdt.Claim{c}
			in.Packs[s.Pack] = PackStatus{State: tc.packs, Bytes: tc.size}
		}
		in.World = w
		in.Timers = Plan(in).Timers
		in.Timers.Repairs = nil // what it has fetched to hold a copy was long ago
		in.Now = now
		out := Plan(in)
		if len(out.Claims) != tc.want {
			t.Errorf("%s: %d takeovers at once, want %d", tc.name, len(out.Claims), tc.want)
		}
		due := now + time.Minute
		if tc.size == 0 {
			due = now + guessTime
		}
		if tc.want < 10 && out.Wake != due {
			t.Errorf("%s: wakes %v later, want %v", tc.name, out.Wake-now, due-now)
		}
	}
	// A size that turns out takes the place of the guess.
	in := Input{Now: now, Packs: map[string]PackStatus{"p": {State: Fetching, Bytes: 7}}}
	in.Timers.Repairs = []Repair{{At: now - time.Second, Pack: "p", Bytes: unknownPack, Guess: true}, {At: now - time.Minute, Slot: true}}
	if got := Plan(in).Timers.Repairs; len(got) != 1 || got[0].Bytes != 7 || got[0].Guess {
		t.Errorf("repairs: %+v", got)
	}
}
