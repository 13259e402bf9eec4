package des

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// long says whether to run what takes many minutes of CPU, too.
var long = os.Getenv("FORMATION_LONG") != ""

// cheap trims what takes many times as long under the race detector, which has
// nothing to find in one sequence of events; check.sh runs it without, too.
func cheap(nodes int) int {
	if raced {
		return min(nodes, 100)
	}
	return nodes
}

// deaths kills nodes, one a second, and says how long those that rank for their
// slots took at most to confirm it.
func deaths(t *testing.T, s *Sim, victims ...int) time.Duration {
	t.Helper()
	ranked := map[int][]int{}
	s.Run(5 * time.Second)
	for _, v := range victims {
		for i, n := range s.nodes {
			if n.up && !slices.Contains(victims, i) && slices.Contains(n.interest, s.nodes[v].key) {
				ranked[v] = append(ranked[v], i)
			}
		}
		if len(ranked[v]) == 0 {
			t.Errorf("nobody ranks for the slots of n%d", v)
		}
		s.Crash(v, true)
		s.Run(time.Second)
	}
	s.Run(10 * time.Second)
	var worst time.Duration
	for _, v := range victims {
		found := map[int]time.Duration{}
		for _, c := range s.Confirmations() {
			if c.Of == v {
				found[c.By] = c.After
			}
		}
		for _, i := range ranked[v] {
			after, ok := found[i]
			if !ok || after > 10*time.Second {
				t.Errorf("n%d ranks for slots of n%d and has confirmed its death after %v (found: %v)", i, v, after, ok)
			}
			worst = max(worst, after)
		}
	}
	return worst
}

func TestADeathIsConfirmedWithinTenSeconds(t *testing.T) {
	for _, c := range []struct{ nodes, instances int }{{100, 200}, {1000, 500}} {
		var worst time.Duration
		c.nodes = cheap(c.nodes)
		s := twice(t, Config{Seed: 11, Nodes: c.nodes, Net: lossy}, func(s *Sim) {
			s.Boot(Workload{Instances: c.instances, Replicas: 1})
			worst = deaths(t, s, mostLoaded(s, 3)...)
		})
		_, wrong := s.Takeovers()
		t.Logf("seed=11 nodes=%d instances=%d: the last of those ranked confirmed a death after %v", c.nodes, c.instances, worst)
		if wrong > 0 || s.FalseDeaths() > 0 {
			t.Errorf("%d nodes: %d false takeovers, %d false deaths", c.nodes, wrong, s.FalseDeaths())
		}
	}
}

// mostLoaded are the k nodes that run the most.
func mostLoaded(s *Sim, k int) []int {
	var all []int
	for i := range s.nodes {
		all = append(all, i)
	}
	slices.SortStableFunc(all, func(a, b int) int { return len(s.nodes[b].vms) - len(s.nodes[a].vms) })
	return all[:k]
}

// A virtual hour in which two of a hundred messages are lost and every node stops
// for half a second twice a minute: nobody is taken for dead.
func TestLossAndStallsKillNobody(t *testing.T) {
	cases := []struct {
		nodes, instances int
		d                time.Duration
	}{{100, 200, time.Hour}, {1000, 500, time.Minute}}
	if long {
		cases[1].d = time.Hour
	}
	for _, c := range cases {
		if c.nodes = cheap(c.nodes); raced {
			c.d = min(c.d, time.Minute)
		}
		s := twice(t, Config{Seed: 12, Nodes: c.nodes, Net: NetConfig{Loss: 0.02}}, func(s *Sim) {
			s.Boot(Workload{Instances: c.instances, Replicas: 1})
			s.Stalls(500*time.Millisecond, 30*time.Second)
			s.Run(c.d)
		})
		all, _ := s.Takeovers()
		t.Logf("seed=12 nodes=%d, %v of 2 %% loss: %d stalls, %d hints, %d false deaths, %d takeovers",
			c.nodes, c.d, s.Seen["stall"], s.Seen["a hint was told"], s.FalseDeaths(), all)
		if s.FalseDeaths() > 0 || all > 0 || s.Seen["stall"] == 0 {
			t.Errorf("%d nodes: %d false deaths, %d takeovers in %d stalls", c.nodes, s.FalseDeaths(), all, s.Seen["stall"])
		}
	}
}

// load is what owners do while it is measured what nodes send: a change every so
// often, drawn; 0: none.
type load struct {
	Workload
	every, span time.Duration
}

// perNode is what a node of a swarm sends in a second, after the start.
func perNode(t *testing.T, nodes int, w load) (messages, bytes float64) {
	var before, after [Classes]Traffic
	made := 0
	runs := 2
	if nodes > 100 {
		runs = 1 // that a run repeats itself is shown by others
	}
	s := times(t, runs, Config{Seed: 13, Nodes: nodes, Net: NetConfig{Loss: 0.02}}, func(s *Sim) {
		s.Boot(w.Workload)
		if w.every > 0 {
			s.Changes(w.every)
		}
		s.Run(30 * time.Second)
		before, made = s.Traffic(), s.Statements()
		s.Run(w.span)
		after, made = s.Traffic(), s.Statements()-made
	})
	span := w.span
	t.Logf("seed=13 nodes=%d: %.2f statements a second in all", nodes, float64(made)/span.Seconds())
	per := float64(s.Nodes()) * span.Seconds()
	for c := range Classes {
		m, b := float64(after[c].Messages-before[c].Messages)/per, float64(after[c].Bytes-before[c].Bytes)/per
		t.Logf("seed=13 nodes=%d instances=%d: %v: %.2f messages, %.0f bytes per node and second", nodes, w.Instances, c, m, b)
		messages, bytes = messages+m, bytes+b
	}
	return messages, bytes
}

// sizes are those between which what a node sends is to be flat.
func sizes() []int {
	if long {
		return []int{100, cheap(1000), cheap(10_000)}
	}
	return []int{100, cheap(1000)}
}

// flat holds that a node sends at most half as much again in the larger swarms, and no
// more either of messages or of bytes, under a workload for each size.
func flat(t *testing.T, what string, of func(nodes int) load) {
	var m1, b1 float64
	for _, nodes := range sizes() {
		m, b := perNode(t, nodes, of(nodes))
		if m1 == 0 {
			m1, b1 = m, b
		}
		t.Logf("%s: at %d nodes messages × %.2f, bytes × %.2f", what, nodes, m/m1, b/b1)
		if m/m1 > 1.5 || b/b1 > 1.5 {
			t.Errorf("%s is not flat: at %d nodes messages × %.2f, bytes × %.2f", what, nodes, m/m1, b/b1)
		}
	}
}

func TestBackgroundIsFlat(t *testing.T) {
	flat(t, "background without instances", func(int) load { return load{span: 2 * time.Minute} })
	if long { // the ranking of as many instances takes a while
		flat(t, "background with a replica a node", func(nodes int) load {
			return load{Workload: Workload{Instances: nodes, Replicas: 1}, span: time.Minute}
		})
	}
}

// What a node sends follows how much is said in the swarm, not how many there are: with
// the same changes a second.
func TestWorkIsFlat(t *testing.T) {
	flat(t, "work", func(int) load {
		return load{Workload: Workload{Instances: 50, Replicas: 1}, every: 2 * time.Second, span: 30 * time.Second}
	})
}

// A large swarm loses the node that runs the most, and then sight of another for a
// while, which takes over what it may: every replica is back each time, and once. A
// thousand nodes with FORMATION_LONG=1.
func TestALargeSwarmHeals(t *testing.T) {
	nodes := 100
	if long {
		nodes = cheap(1000)
	}
	s := New(Config{Seed: 14, Nodes: nodes, Net: lossy})
	s.Boot(Workload{Instances: 100, Replicas: 1})
	s.Run(5 * time.Second)
	served := func(what string) {
		took, ok := s.RunUntil(2*time.Minute, time.Second, func() bool { return len(s.Unserved()) == 0 && s.Converged() })
		t.Logf("seed=14: %s: served and converged after %v", what, took)
		if !ok {
			t.Errorf("seed=14: %s: after %v: converged %v, %v", what, took, s.Converged(), s.Unserved())
		}
	}
	most := mostLoaded(s, 2)
	s.Crash(most[0], true)
	s.Run(5 * time.Second)
	served("a death")
	var rest []int
	for i := range s.nodes {
		if !slices.Contains(most[1:], i) {
			rest = append(rest, i)
		}
	}
	s.Partition(rest, most[1:])
	s.Run(40 * time.Second)
	s.Heal()
	served("a split")
	s.CheckEqualViews()
	all, _ := s.Takeovers()
	for _, b := range s.Bad {
		t.Errorf("seed=14: %s", b)
	}
	t.Logf("seed=14 nodes=%d: %d takeovers, %d events, %d forks", s.Nodes(), all, s.Events(), s.Forks())
	if all == 0 {
		t.Error("seed=14: nothing was taken over")
	}
}

// BenchmarkSwarm is how long a virtual second of a swarm takes: a tenth as many
// instances of two replicas as nodes, over the regions of a real fleet, two of a hundred
// packets lost, and an owner who restarts something every other second. The largest
// needs FORMATION_LONG=1.
func BenchmarkSwarm(b *testing.B) {
	for _, nodes := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			if nodes > 1000 && !long {
				b.Skip("takes minutes and gigabytes: FORMATION_LONG=1")
			}
			s := New(Config{Seed: 13, Nodes: nodes, Net: NetConfig{Regions: true, Loss: 0.02}})
			s.Boot(Workload{Instances: nodes / 10, Replicas: 2})
			s.Changes(2 * time.Second)
			s.Run(5 * time.Second)
			before, events, said := s.Traffic(), s.Events(), s.Statements()
			n := 0
			for b.Loop() {
				s.Run(time.Second)
				n++
			}
			per := float64(nodes) * float64(n)
			after := s.Traffic()
			for c := range Classes {
				b.ReportMetric(float64(after[c].Messages-before[c].Messages)/per, strings.ReplaceAll(c.String(), " ", "-")+"/node/s")
			}
			b.ReportMetric(float64(s.Events()-events)/float64(n), "events/s")
			b.ReportMetric(float64(s.Statements()-said)/float64(n), "statements/s")
			if len(s.Bad) > 0 {
				b.Errorf("%v", s.Bad)
			}
		})
	}
}
