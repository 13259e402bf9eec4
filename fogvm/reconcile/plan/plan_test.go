package plan

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

var rewrite = flag.Bool("rewrite", false, "rewrite testdata/*.txt")

// holder is the node that serves a slot, 0 for none.
func (c *cluster) holder(id string, slot int) int {
	for _, n := range c.nodes {
		if cl, ok := n.claims[Slot{id, slot}]; ok && n.up && cl.Ready {
			return n.id
		}
	}
	return 0
}

// scenario is a history whose transcript is kept.
type scenario struct {
	name  string
	nodes int
	run   func(c *cluster)
}

func TestScenarios(t *testing.T) {
	checkScenarios(t, []scenario{
		{"kill-and-return", 3, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			victim := c.holder("web", 0)
			c.kill(victim, true)
			c.run(30 * time.Second)
			c.start(victim)
			c.run(30 * time.Second)
		}},
		{"restart-within-the-delay", 3, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			victim := c.holder("web", 0)
			c.kill(victim, false)
			c.run(8 * time.Second)
			c.start(victim)
			c.run(30 * time.Second)
			if got := c.node(victim).vms[VMID("web", 0)]; got == nil || got.boots != 1 {
				c.violate("the VM did not live through the restart: %+v", got)
			}
		}},
		{"restart-after-the-delay", 3, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			victim := c.holder("web", 1)
			c.kill(victim, false)
			c.run(16 * time.Second)
			c.start(victim)
			c.run(30 * time.Second)
		}},
		{"partition-and-heal", 4, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			a, b := c.holder("web", 0), c.holder("web", 1)
			rest := []int{}
			for id := 1; id <= 4; id++ {
				if id != a && id != b {
					rest = append(rest, id)
				}
			}
			c.split([]int{a, b}, rest)
			c.run(40 * time.Second)
			c.heal()
			c.run(30 * time.Second)
		}},
		{"too-few-nodes", 1, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			c.add(2)
			c.run(20 * time.Second)
		}},
		{"scale", 3, func(c *cluster) {
			c.ship("web", 1, "p1")
			c.run(10 * time.Second)
			c.change("web", "scales to 3", func(s *crdt.Spec) { s.Replicas = 3 })
			c.run(10 * time.Second)
			c.change("web", "scales to 1", func(s *crdt.Spec) { s.Replicas = 1 })
			c.run(10 * time.Second)
		}},
		{"rolling-update", 3, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			c.ship("web", 2, "p2")
			c.run(30 * time.Second)
		}},
		{"update-to-a-bad-pack", 2, func(c *cluster) {
			c.fails["p2"] = true
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			c.ship("web", 2, "p2")
			c.run(40 * time.Second)
			c.ship("web", 2, "p3")
			c.run(30 * time.Second)
		}},
		{"app-that-always-fails", 3, func(c *cluster) {
			c.fails["p1"] = true
			c.ship("web", 1, "p1")
			c.run(60 * time.Second)
			if len(c.log.String()) > 4000 {
				c.violate("the slot is handed round")
			}
			c.ship("web", 1, "p2")
			c.run(30 * time.Second)
		}},
		{"stop-and-start", 2, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			c.change("web", "stops", func(s *crdt.Spec) { s.Phase = crdt.PhaseStopped })
			c.run(5 * time.Second)
			c.change("web", "starts", func(s *crdt.Spec) { s.Phase = crdt.PhaseRunning })
			c.run(20 * time.Second)
			c.change("web", "restarts", func(s *crdt.Spec) { s.Restart++ })
			c.run(20 * time.Second)
			c.remove("web")
			c.run(2 * time.Second)
		}},
		{"dead-for-good-then-drain", 8, func(c *cluster) {
			c.ship("web", 1, "p1")
			c.run(10 * time.Second)
			c.kill(c.holder("web", 0), true)
			c.run(60 * time.Second)
			n := c.node(c.holder("web", 0))
			c.logf("n%d drains", n.id)
			n.reg.Draining = true
			c.run(60 * time.Second)
		}},
		{"size-out-of-bounds", 2, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			c.change("web", "wants 64 MiB", func(s *crdt.Spec) { s.MemoryBytes = 64 << 20 })
			c.run(30 * time.Second)
			for id := range 2 {
				for _, vm := range c.node(id + 1).vms {
					if vm.boots != 1 {
						c.violate("n%d booted its VM %d times", id+1, vm.boots)
					}
				}
			}
			c.change("web", "wants 1 GiB", func(s *crdt.Spec) { s.MemoryBytes = 1 << 30 })
			c.run(30 * time.Second)
		}},
		{"disk-offered-shrinks", 3, func(c *cluster) {
			c.ship("web", 1, "p1")
			c.run(10 * time.Second)
			n := c.node(c.holder("web", 0))
			c.logf("n%d offers 1 GiB of disk", n.id)
			n.reg.Total.Disk = 1 << 30
			c.run(30 * time.Second)
		}},
		{"guest-hangs-in-boot", 2, func(c *cluster) {
			c.hangs[1], c.hangs[2] = true, true
			c.ship("web", 1, "p1")
			c.run(10 * time.Second)
			for id := range 2 {
				c.hangs[id+1] = len(c.node(id+1).claims) > 0
			}
			c.run(15 * time.Minute)
			c.hangs = nil
			c.run(5 * time.Minute)
		}},
		{"node-joins-and-takes-its-share", 2, func(c *cluster) {
			// The ranking of wiki is n3, n2, n1.
			c.ship("wiki", 2, "p1")
			c.run(10 * time.Second)
			c.add(3)
			c.logf("n3 joins")
			c.run(6 * time.Minute)
		}},
		{"node-joins-and-hangs", 2, func(c *cluster) {
			c.tick = time.Second
			c.ship("wiki", 2, "p1")
			c.run(10 * time.Second)
			c.add(3)
			c.hangs[3] = true
			c.logf("n3 joins; its guests hang in boot")
			c.run(40 * time.Minute)
			c.hangs[3] = false
			c.logf("n3 is well")
			c.run(40 * time.Minute)
		}},
		{"over-quota", 3, func(c *cluster) {
			c.quota = &stmt.Quota{Replicas: 2, Memory: 1 << 30}
			c.ship("web", 1, "p1")
			c.run(10 * time.Second)
			c.ship("app", 2, "p1") // its ID comes first, but web runs
			c.run(10 * time.Second)
			c.change("web", "wants 1 GiB", func(s *crdt.Spec) { s.MemoryBytes = 1 << 30 })
			c.run(10 * time.Second)
			c.change("web", "wants 512 MiB", func(s *crdt.Spec) { s.MemoryBytes = 512 << 20 })
			c.run(10 * time.Second)
			c.remove("web")
			c.run(20 * time.Second)
			c.quota.Replicas = 1
			c.logf("the quota is 1 replica")
			c.run(10 * time.Second)
			c.quota = nil
			c.logf("there is no quota")
			c.run(10 * time.Second)
		}},
		{"drain-one-by-one-and-undrain", 4, func(c *cluster) {
			for _, id := range []string{"mail", "wiki", "chat"} {
				c.ship(id, 2, "p1")
			}
			c.run(10 * time.Second)
			busy := c.node(1)
			for _, n := range c.nodes {
				if len(n.claims) > len(busy.claims) {
					busy = n
				}
			}
			c.logf("n%d drains", busy.id)
			busy.reg.Draining = true
			c.run(30 * time.Second)
			if len(busy.claims) > 0 || len(busy.vms) > 0 {
				c.violate("n%d is not empty", busy.id)
			}
			c.logf("n%d does not drain any more", busy.id)
			busy.reg.Draining = false
			c.run(time.Minute)
		}},
		{"drain-is-called-off", 4, func(c *cluster) {
			for _, id := range []string{"mail", "wiki", "chat"} {
				c.ship(id, 2, "p1")
			}
			c.run(10 * time.Second)
			n := c.node(c.holder("mail", 0))
			c.logf("n%d drains", n.id)
			n.reg.Draining = true
			c.run(2 * time.Second)
			c.logf("n%d does not drain any more", n.id)
			n.reg.Draining = false
			c.run(time.Minute)
		}},
		{"drain", 3, func(c *cluster) {
			c.ship("web", 2, "p1")
			c.run(10 * time.Second)
			n := c.node(c.holder("web", 0))
			c.logf("n%d drains", n.id)
			n.reg.Draining = true
			c.run(20 * time.Second)
		}},
	})
}

// checkScenarios plays each history, and compares what happened.
func checkScenarios(t *testing.T, scenarios []scenario) {
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			c := newCluster(sc.nodes)
			sc.run(c)
			for _, b := range append(c.bad, c.settled()...) {
				t.Error(b)
			}
			golden(t, sc.name, c.log.String())
			before := c.log.Len()
			c.run(2 * time.Minute)
			if extra := c.log.String()[before:]; extra != "" {
				t.Errorf("not settled:\n%s", extra)
			}
			// Clocks on the wall that jump by an hour to either side decide nothing.
			jumpy := newCluster(sc.nodes)
			jumpy.jumps = time.Hour
			sc.run(jumpy)
			if got := jumpy.log.String(); got != c.log.String()[:before] {
				t.Errorf("with jumping wall clocks:\n%s", got)
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("transcript differs from %s; got:\n%s", path, got)
	}
}

// TestAnyHistorySettles: whatever happened, once every machine is back and
// together each slot is served exactly once, nothing is left over, and nothing
// moves any more.
func TestAnyHistorySettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "nodes")
		c := newCluster(n)
		c.tick = 500 * time.Millisecond
		someNode := func() int { return rapid.IntRange(1, n).Draw(t, "node") }
		ids := []string{"a", "b"}
		t.Repeat(map[string]func(*rapid.T){
			"ship": func(t *rapid.T) {
				c.ship(rapid.SampledFrom(ids).Draw(t, "id"), rapid.IntRange(1, 4).Draw(t, "replicas"),
					rapid.SampledFrom([]string{"p1", "p2"}).Draw(t, "pack"))
			},
			"kill":   func(t *rapid.T) { c.kill(someNode(), rapid.Bool().Draw(t, "vms")) },
			"start":  func(t *rapid.T) { c.start(someNode()) },
			"split":  func(t *rapid.T) { c.node(someNode()).side = rapid.IntRange(0, 2).Draw(t, "side") },
			"drain":  func(t *rapid.T) { c.node(someNode()).reg.Draining = true },
			"delete": func(t *rapid.T) { c.remove(rapid.SampledFrom(ids).Draw(t, "id")) },
			"change": func(t *rapid.T) {
				c.change(rapid.SampledFrom(ids).Draw(t, "id"), "changes", func(s *crdt.Spec) {
					switch rapid.IntRange(0, 3).Draw(t, "what") {
					case 0:
						s.Restart++
					case 1:
						s.Recreate++
					case 2:
						s.Phase = crdt.PhaseStopped
					case 3:
						s.Phase = crdt.PhaseRunning
					}
				})
			},
			"": func(t *rapid.T) {
				c.run(time.Duration(rapid.IntRange(1, 30).Draw(t, "halves")) * c.tick)
				if len(c.bad) > 0 {
					t.Fatalf("%s\n%s", strings.Join(c.bad, "\n"), c.log.String())
				}
			},
		})
		c.heal()
		for _, n := range c.nodes {
			c.start(n.id)
			n.reg.Draining = false
		}
		c.run(90 * time.Second)
		if bad := append(c.bad, c.settled()...); len(bad) > 0 {
			t.Fatalf("%s\n%s", strings.Join(bad, "\n"), c.log.String())
		}
		before := c.log.Len()
		c.run(30 * time.Second)
		if extra := c.log.String()[before:]; extra != "" {
			t.Fatalf("not settled:\n%s", c.log.String())
		}
	})
}
