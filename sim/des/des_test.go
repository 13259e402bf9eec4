package des

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/regions"
)

// lossy is a network like a bad day of the real one.
var lossy = NetConfig{Loss: 0.02, Duplicate: 0.01, Damage: 0.01}

// twice runs a scenario two times and holds that both were the same, and that no
// invariant broke. It returns the second.
func twice(t *testing.T, cfg Config, run func(*Sim)) *Sim {
	t.Helper()
	return times(t, 2, cfg, run)
}

// times is twice, so many times.
func times(t *testing.T, runs int, cfg Config, run func(*Sim)) *Sim {
	t.Helper()
	var last *Sim
	var hash string
	for i := range runs {
		s := New(cfg)
		run(s)
		for _, b := range s.Bad {
			t.Errorf("seed %d: %s", cfg.Seed, b)
		}
		if i > 0 && s.Hash() != hash {
			t.Errorf("seed %d: two runs differ: %s and %s", cfg.Seed, hash, s.Hash())
		}
		last, hash = s, s.Hash()
	}
	t.Logf("seed=%d nodes=%d events=%d virtual=%v forks=%d hash=%s", cfg.Seed, last.Nodes(), last.Events(), last.Now(), last.Forks(), hash)
	return last
}

// Whatever is to happen when, and whenever that is said: what is next comes next.
func TestEventsComeInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue
		var want []event
		var now time.Duration
		for i := range rapid.IntRange(1, 300).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "push") {
				far := rapid.SampledFrom([]time.Duration{0, 3, 50 * time.Microsecond, time.Millisecond, time.Second, time.Hour}).Draw(t, "about")
				e := event{at: now + time.Duration(rapid.Int64Range(0, int64(far)).Draw(t, "after")), seq: uint64(i)}
				q.push(e)
				want = append(want, e)
				slices.SortStableFunc(want, func(a, b event) int { return cmp.Compare(a.at, b.at) })
			}
			at, some := q.next()
			if some != (len(want) > 0) || some && at != want[0].at {
				t.Fatalf("next is at %v (%v) of %d", at, some, len(want))
			}
			if some && rapid.Bool().Draw(t, "pop") {
				got := q.pop()
				if now = got.at; got.at != want[0].at || got.seq != want[0].seq {
					t.Fatalf("got %v/%d, want %v/%d", got.at, got.seq, want[0].at, want[0].seq)
				}
				want = want[1:]
			}
		}
		for _, w := range want {
			if got := q.pop(); got.at != w.at || got.seq != w.seq {
				t.Fatalf("got %v/%d, want %v/%d", got.at, got.seq, w.at, w.seq)
			}
		}
		if at, some := q.next(); some {
			t.Fatalf("something is left, at %v", at)
		}
	})
}

func TestATallyCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var got tally
		want := map[int32]uint32{}
		for _, i := range rapid.SliceOfN(rapid.Int32Range(0, 40), 1, 300).Draw(t, "of") {
			if want[i]++; got.next(i) != want[i] {
				t.Fatalf("%d was counted otherwise than %d times", i, want[i])
			}
		}
	})
}

// One more node changes neither whom the others know nor what their links
// draw.
func TestANodeMoreShiftsNoStream(t *testing.T) {
	a, b := New(Config{Seed: 7, Nodes: 20}), New(Config{Seed: 7, Nodes: 21})
	for i := range int32(20) {
		others := slices.DeleteFunc(slices.Clone(b.nodes[i].links), func(o int32) bool { return o == 20 })
		if !slices.Equal(a.nodes[i].links, others) {
			t.Errorf("node %d is linked with %v, and with %v beside one more", i, a.nodes[i].links, others)
		}
		if a.nodes[i].key != b.nodes[i].key || a.nodes[i].rng.Uint64() != b.nodes[i].rng.Uint64() {
			t.Errorf("node %d draws otherwise", i)
		}
		for o := range int32(20) {
			if a.net.way(i, o) != b.net.way(i, o) {
				t.Errorf("the link %d-%d draws otherwise", i, o)
			}
		}
	}
}

// Nodes are where the fleet's are, one node more moves nobody, and a message takes
// half the round trip and up to a seventh more.
func TestRegions(t *testing.T) {
	cfg := Config{Seed: 5, Nodes: 2000, Net: NetConfig{Regions: true}}
	s := New(cfg)
	cfg.Nodes++
	more := New(cfg)
	in := map[string]int{}
	for i := range s.Nodes() {
		in[s.Region(i)]++
		if s.Region(i) != more.Region(i) {
			t.Fatalf("n%d is in %s, and in %s beside one more", i, s.Region(i), more.Region(i))
		}
	}
	for r := range regions.Count {
		where := regions.Of(r)
		if want := 2000 * where.Weight / 4453; in[where.Name] < want*3/4-10 || in[where.Name] > want*5/4+10 {
			t.Errorf("%d of 2000 nodes are in %s, want about %d", in[where.Name], where.Name, want)
		}
	}
	for i := range int32(200) {
		least := regions.RoundTrip(s.net.at[i], s.net.at[i+1]) / 2
		if got := s.net.way(i, i+1); got < least || got > least+least*15/100 {
			t.Errorf("a message from %s to %s takes %v, at least %v", s.Region(int(i)), s.Region(int(i+1)), got, least)
		}
	}
}

func TestSeedsDiffer(t *testing.T) {
	hash := func(seed uint64) string {
		s := New(Config{Seed: seed, Nodes: 5})
		s.Boot(Workload{Instances: 4, Replicas: 1})
		s.Run(5 * time.Second)
		return s.Hash()
	}
	if hash(1) == hash(2) {
		t.Error("two seeds give the same events")
	}
}

// moved are the slots that run elsewhere than before.
func moved(before, after map[plan.Slot][]int) (out []plan.Slot) {
	for slot, on := range before {
		if !slices.Equal(on, after[slot]) {
			out = append(out, slot)
		}
	}
	return out
}

func TestADeadNodeMovesOnlyItsReplicas(t *testing.T) {
	for seed := range uint64(3) {
		twice(t, Config{Seed: seed, Nodes: 10, Net: lossy}, func(s *Sim) {
			s.Boot(Workload{Instances: 15, Replicas: 2})
			s.Run(20 * time.Second)
			before, victim := s.Placement(), int(seed)
			own := 0
			for _, on := range before {
				if slices.Contains(on, victim) {
					own++
				}
			}
			s.Crash(victim, true)
			took, ok := s.RunUntil(2*time.Minute, time.Second, func() bool { return len(s.Unserved()) == 0 })
			if !ok {
				t.Fatalf("seed %d: not served after %v: %v", seed, took, s.Unserved())
			}
			s.Run(time.Minute)
			for _, slot := range moved(before, s.Placement()) {
				if !slices.Contains(before[slot], victim) {
					t.Errorf("seed %d: %v moved from %v to %v, and n%d died", seed, slot, before[slot], s.Placement()[slot], victim)
				}
			}
			t.Logf("seed %d: %d of %d replicas back after %v, no other moved", seed, own, len(before), took)
		})
	}
}

func TestARestartWithinTheDelayMovesNothing(t *testing.T) {
	for seed := range uint64(3) {
		for _, machine := range []bool{false, true} {
			twice(t, Config{Seed: seed, Nodes: 10, Net: lossy}, func(s *Sim) {
				s.Boot(Workload{Instances: 15, Replicas: 2})
				s.Run(20 * time.Second)
				before, victim := s.Placement(), int(seed)
				s.Crash(victim, machine)
				s.Run(plan.DefaultTakeoverDelay - time.Second)
				s.Start(victim)
				s.Run(2 * time.Minute)
				if m := moved(before, s.Placement()); len(m) > 0 {
					t.Errorf("seed %d: %v moved", seed, m)
				}
				all, _ := s.Takeovers()
				if all > 0 || len(s.Unserved()) > 0 || !s.Converged() {
					t.Errorf("seed %d: %d takeovers, %v unserved, converged: %v", seed, all, s.Unserved(), s.Converged())
				}
			})
		}
	}
}

// A switch takes a third of the fleet away for a while.
func TestASwitchRebootStaysWithinTheBudget(t *testing.T) {
	const nodes = 15
	s := twice(t, Config{Seed: 3, Nodes: nodes, Net: lossy}, func(s *Sim) {
		s.Boot(Workload{Instances: 20, Replicas: 3})
		s.Run(20 * time.Second)
		var away, rest []int
		for i := range nodes {
			if i%3 == 0 {
				away = append(away, i)
			} else {
				rest = append(rest, i)
			}
		}
		s.Partition(rest, away)
		s.Run(45 * time.Second)
		s.Heal()
		took, ok := s.RunUntil(5*time.Minute, time.Second, func() bool { return len(s.Unserved()) == 0 && s.Converged() })
		if !ok {
			t.Fatalf("after %v: converged %v, %v", took, s.Converged(), s.Unserved())
		}
		s.CheckEqualViews()
		all, _ := s.Takeovers()
		t.Logf("%d takeovers, at most %d of a node and minute; one runner each %v after", all, s.TakeoverPeak(), took)
	})
	if peak := s.TakeoverPeak(); peak > plan.TakeoverBudget {
		t.Errorf("%d takeovers of one node in a minute, the budget is %d", peak, plan.TakeoverBudget)
	}
}

// Statements in any order, lost, doubled and damaged, between nodes that crash,
// sleep and lose sight of each other: in the end all views are equal bytes, every
// replica runs once, and nothing that an owner was told is safe is lost.
func TestChaosEndsInEqualViews(t *testing.T) {
	for seed := range uint64(4) {
		s := twice(t, Config{Seed: seed, Nodes: 12, Net: NetConfig{Loss: 0.2, Duplicate: 0.1, Damage: 0.05}}, func(s *Sim) {
			s.Boot(Workload{Instances: 8, Replicas: 2})
			rng := rand.New(rand.NewPCG(seed, 42))
			for range 40 {
				chaos(s, rng)
				s.Run(time.Duration(rng.IntN(6000)) * time.Millisecond)
			}
			s.Heal()
			s.Loss(0.02)
			for i := range s.Nodes() {
				s.Start(i)
			}
			took, ok := s.RunUntil(5*time.Minute, time.Second, func() bool { return len(s.Unserved()) == 0 && s.Converged() })
			if !ok {
				t.Errorf("seed %d: %v after healing: converged %v, %v", seed, took, s.Converged(), s.Unserved())
			}
			s.CheckEqualViews()
			s.CheckAcknowledged()
			t.Logf("seed %d: %v after healing all is well; %d statements acknowledged; seen %v", seed, took, s.Acknowledged(), s.Seen)
		})
		for _, what := range []string{"crash", "partition", "suspend", "a damaged message was refused", "statements repaired by anti-entropy"} {
			if s.Seen[what] == 0 {
				t.Errorf("seed %d: never: %s", seed, what)
			}
		}
	}
}

// chaos does one thing to a swarm.
func chaos(s *Sim, rng *rand.Rand) {
	up := s.Reachable()
	if len(up) == 0 {
		return
	}
	i := up[rng.IntN(len(up))]
	mine := s.Instances(0)
	switch rng.IntN(10) {
	case 0, 1:
		s.Crash(i, rng.IntN(2) == 0)
	case 2, 3:
		s.Start(rng.IntN(s.Nodes()))
	case 4:
		var a, b []int
		for n := range s.Nodes() {
			if rng.IntN(2) == 0 {
				a = append(a, n)
			} else {
				b = append(b, n)
			}
		}
		s.Partition(a, b)
	case 5:
		s.Heal()
	case 6:
		s.Suspend(i, time.Duration(rng.IntN(20000))*time.Millisecond)
	case 7:
		s.Ship(0, i, crdt.Spec{Name: fmt.Sprint("new-", len(mine)), Pack: PackName(900 + rng.IntN(9)), Replicas: 1 + rng.IntN(3)})
	case 8:
		if len(mine) > 0 {
			s.Set(0, i, mine[rng.IntN(len(mine))].ID, func(spec *crdt.Spec) { spec.Replicas = 1 + rng.IntN(3) })
		}
	case 9:
		if len(mine) > 2 {
			s.Delete(0, i, mine[rng.IntN(len(mine))].ID, nil)
		}
	}
}

// Statements spread over connections: after a machine has died its peers know it by
// silence, find others in its place, and all who are there hear what is said; when it
// comes back it is a peer again.
func TestConnectionsFollowTheNodes(t *testing.T) {
	const nodes, victim = 60, 7
	s := twice(t, Config{Seed: 21, Nodes: nodes, Net: NetConfig{Regions: true, Loss: 0.02}}, func(s *Sim) {
		s.Boot(Workload{Instances: 10, Replicas: 1})
		s.Run(10 * time.Second)
		peers := s.mesh.Peers(victim)
		s.Crash(victim, true)
		s.Run(idleAfter - time.Second)
		for _, p := range peers {
			if !s.mesh.Connected(p, victim) {
				t.Errorf("n%d knows at once that n%d is gone", p, victim)
			}
		}
		s.Run(10 * time.Second)
		for _, p := range peers {
			if s.mesh.Connected(p, victim) || s.mesh.Degree(p) < wantPeers {
				t.Errorf("n%d has %d peers, the dead one among them: %v", p, s.mesh.Degree(p), s.mesh.Connected(p, victim))
			}
		}
		s.Start(victim)
		s.Run(5 * time.Second)
		if s.mesh.Degree(victim) < wantPeers || len(s.mesh.Of(victim)) == 0 {
			t.Errorf("the returned node has %d peers and a mesh of %d", s.mesh.Degree(victim), len(s.mesh.Of(victim)))
		}
	})
	for i := range int32(nodes) {
		for _, p := range s.mesh.Of(i) {
			if !s.mesh.Connected(i, p) || !s.mesh.Connected(p, i) {
				t.Errorf("n%d meshes with n%d without a connection", i, p)
			}
		}
	}
}

// A split ends connections over it when they have been silent for long enough, and a
// heal brings some back.
func TestASplitEndsConnections(t *testing.T) {
	over := func(s *Sim) (n int) {
		for i := range int32(40) {
			for _, p := range s.mesh.Peers(i) {
				if i < 20 && p >= 20 {
					n++
				}
			}
		}
		return n
	}
	var left, right []int
	for i := range 20 {
		left, right = append(left, i), append(right, i+20)
	}
	twice(t, Config{Seed: 22, Nodes: 40, Net: lossy}, func(s *Sim) {
		s.Boot(Workload{Instances: 5, Replicas: 1})
		s.Run(5 * time.Second)
		s.Partition(left, right)
		s.Run(idleAfter - time.Second)
		during := over(s)
		s.Run(2 * time.Second)
		after := over(s)
		s.Run(20 * time.Second)
		few := 0
		for i := range int32(40) {
			if s.mesh.Degree(i) < wantPeers {
				few++
			}
		}
		s.Heal()
		s.Run(redial + 5*time.Second)
		if during == 0 || after != 0 || few > 0 || over(s) == 0 {
			t.Errorf("%d connections over a young split, %d over an old one, %d after it; %d nodes with few", during, after, over(s), few)
		}
	})
}
