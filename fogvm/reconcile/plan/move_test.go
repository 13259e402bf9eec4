package plan

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// serving are the nodes that serve an instance, by slot; 0 for none.
func (c *cluster) serving(id string) []int {
	out := make([]int, c.specs[id].Replicas)
	for slot := range out {
		out[slot] = c.holder(id, slot)
	}
	return out
}

// moved counts, over d in steps, how many replicas come to another node, and how
// many of them to each node.
func (c *cluster) moved(d, step time.Duration) (total int, to map[int]int) {
	to = map[int]int{}
	at := map[string][]int{}
	for id := range c.specs {
		at[id] = c.serving(id)
	}
	for end := c.now + d; c.now < end; {
		c.run(step)
		for id := range c.specs {
			for slot, n := range c.serving(id) {
				if n != 0 && n != at[id][slot] {
					if at[id][slot] != 0 {
						total++
						to[n]++
					}
					at[id][slot] = n
				}
			}
		}
	}
	return total, to
}

// TestRebalancingEnds: nodes join and leave at random, in racks or not. Whatever
// went before, the moves that follow the last of it are at most one a replica,
// at most MoveBudget to a node in a window; they end where the ranking wants
// every replica, none is ever served by nobody, and then nothing moves.
func TestRebalancingEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(rapid.IntRange(1, 3).Draw(t, "nodes"))
		c.tick, c.hysteresis = time.Second, 12*time.Second
		ids := []string{"a", "b", "c", "d", "e", "f"}[:rapid.IntRange(1, 6).Draw(t, "instances")]
		for _, id := range ids {
			c.ship(id, rapid.IntRange(1, 3).Draw(t, "replicas"), "p1")
		}
		for _, n := range c.nodes {
			n.reg.Total = crdt.Resources{CPUs: 64, Memory: 64 << 30, Disk: 1 << 40}
		}
		for range rapid.IntRange(1, 6).Draw(t, "events") {
			id := rapid.IntRange(1, len(c.nodes)).Draw(t, "node")
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0:
				n := c.add(len(c.nodes) + 1)
				n.reg.Total = crdt.Resources{CPUs: 64, Memory: rapid.Uint64Range(8, 64).Draw(t, "GiB") << 30, Disk: 1 << 40}
				if rack := rapid.SampledFrom([]string{"", "r1", "r2"}).Draw(t, "rack"); rack != "" {
					n.reg.Labels = map[string]string{place.DomainLabel: rack}
				}
			case 1:
				c.kill(id, rapid.Bool().Draw(t, "vms"))
			case 2:
				c.start(id)
			case 3:
				c.node(id).reg.Draining = !c.node(id).reg.Draining
			}
			c.run(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
		}
		for _, n := range c.nodes {
			c.start(n.id)
			n.reg.Draining = false
		}
		c.run(25 * time.Second) // what was left empty is filled
		replicas := 0
		for _, id := range ids {
			replicas += len(c.serving(id))
		}
		// Each window brings MoveBudget replicas to their node, one of an instance.
		windows := replicas/MoveBudget + 6
		total, to := c.moved(time.Duration(windows)*2*c.hysteresis, time.Second)
		if total > replicas {
			t.Fatalf("%d moves of %d replicas\n%s", total, replicas, c.log.String())
		}
		for n, k := range to {
			if k > MoveBudget*2*windows {
				t.Fatalf("%d moves to n%d in %d windows", k, n, 2*windows)
			}
		}
		if bad := append(c.bad, c.settled()...); len(bad) > 0 {
			t.Fatalf("%v\n%s", bad, c.log.String())
		}
		w := c.world(c.nodes[0])
		for i := range w.Instances {
			s := &w.Instances[i]
			if s.Replicas < 2 {
				continue // stays where it is
			}
			var got []stmt.Key
			for _, n := range c.serving(s.ID) {
				if n > 0 {
					got = append(got, c.node(n).key)
				}
			}
			want := place.Order(*s, w.candidates(s))
			want = want[:min(s.Replicas, len(want))]
			slices.SortFunc(got, stmt.Key.Compare)
			slices.SortFunc(want, stmt.Key.Compare)
			if !slices.Equal(got, want) {
				t.Fatalf("%s is on %v, wanted on %v\n%s", s.ID, got, want, c.log.String())
			}
		}
		if again, _ := c.moved(3*c.hysteresis, time.Second); again > 0 {
			t.Fatalf("%d moves more\n%s", again, c.log.String())
		}
	})
}

// TestMoveBudget: a node that joins takes at most MoveBudget replicas in any
// window, and every replica is served all the time.
func TestMoveBudget(t *testing.T) {
	c := newCluster(2)
	c.tick, c.hysteresis = time.Second, time.Minute
	for i := range 40 {
		c.ship("app"+string(rune('A'+i)), 2, "p1")
	}
	for _, n := range c.nodes {
		n.reg.Total = crdt.Resources{CPUs: 64, Memory: 64 << 30, Disk: 1 << 40}
	}
	c.run(20 * time.Second)
	c.add(3).reg.Total = c.nodes[0].reg.Total
	if k, _ := c.moved(55*time.Second, time.Second); k != 0 {
		t.Fatalf("%d replicas moved within the window", k)
	}
	total := 0
	for range 6 {
		k, to := c.moved(time.Minute, time.Second)
		if k > MoveBudget || k != to[3] {
			t.Fatalf("%d moves in a window, %v by node", k, to)
		}
		total += k
		for id := range c.specs {
			if slices.Contains(c.serving(id), 0) {
				t.Fatalf("a replica of %s is served by nobody\n%s", id, c.log.String())
			}
		}
	}
	if total < 10 {
		t.Fatalf("n3 has taken %d of 80 replicas over", total)
	}
}

// A node takes a slot from another only while nothing else of the instance is
// under way, the contract allows two, and it may move at all.
func TestMovesOnlyWhatIsSteady(t *testing.T) {
	const window = time.Minute
	for _, tc := range []struct {
		name   string
		change func(in *Input, s *crdt.Spec)
		moves  bool
	}{
		{"steady", func(*Input, *crdt.Spec) {}, true},
		{"the holder is not ready", func(in *Input, s *crdt.Spec) { in.World.Claims["web"][0].Ready = false }, false},
		{"a rollout", func(in *Input, s *crdt.Spec) { s.Generation++ }, false},
		{"another claim", func(in *Input, s *crdt.Spec) {
			in.World.Claims["web"] = append(in.World.Claims["web"], claimOf(4, 0, crdt.ClaimDraining, false))
		}, false},
		{"a claim of the dead", func(in *Input, s *crdt.Spec) {
			in.World.Claims["web"] = append(in.World.Claims["web"], claimOf(4, 0, crdt.ClaimRunning, true))
			in.World.Dead[stmt.Key{4}] = 1
		}, true},
		{"the only replica", func(in *Input, s *crdt.Spec) {
			s.Replicas, in.World.Claims["web"] = 1, in.World.Claims["web"][:1]
		}, false},
		{"fence", func(in *Input, s *crdt.Spec) { s.Partition = "fence" }, false},
		{"stopped", func(in *Input, s *crdt.Spec) { s.Phase = crdt.PhaseStopped }, false},
		{"no room", func(in *Input, s *crdt.Spec) {
			in.World.Nodes[0].Total.Memory = s.MemoryBytes
			o := in.World.Instances[0]
			o.ID, o.Replicas = "other", 1
			in.World.Instances = append([]crdt.Spec{o}, in.World.Instances...)
			in.World.Claims["other"] = []crdt.Claim{{Node: in.Self, Instance: "other", Generation: 1, Phase: crdt.ClaimRunning, Ready: true}}
		}, false},
		{"no consent", func(in *Input, s *crdt.Spec) { in.Accepts = func(stmt.Key) bool { return false } }, false},
		{"switched off", func(in *Input, s *crdt.Spec) { in.Hysteresis = -1 }, false},
		{"draining", func(in *Input, s *crdt.Spec) { in.World.Nodes[0].Draining = true }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, _ := world3()
			in := Input{Now: 0, Self: stmt.Key{1}, World: w, Hysteresis: window}
			s := &in.World.Instances[0]
			s.Replicas = 2
			// The last two in the ranking serve.
			order := place.Order(*s, w.candidates(s))
			in.Self = order[0]
			w.Claims["web"] = []crdt.Claim{
				claimOf(order[2][0], 0, crdt.ClaimRunning, true), claimOf(order[1][0], 1, crdt.ClaimRunning, true),
			}
			if in.Self != (stmt.Key{1}) {
				t.Fatal("the table is written for node 1 in front")
			}
			tc.change(&in, s)
			out := Plan(in)
			in.Timers, in.Now = out.Timers, window
			out = Plan(in)
			moved := slices.ContainsFunc(out.Claims, func(c crdt.Claim) bool { return c.Instance == "web" && c.Generation == 2 })
			if moved != tc.moves {
				t.Errorf("moved: %v, want %v (%+v)", moved, tc.moves, out.Claims)
			}
		})
	}
}
