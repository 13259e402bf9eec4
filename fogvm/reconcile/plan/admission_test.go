package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
)

// TestNodesKeepTheirPromises: whatever is shipped at once, resized, deleted, split,
// healed, killed or drained, at no moment have a node's VMs, and its claims for
// what they were taken for, more memory, disk or CPUs in sum than it has.
func TestNodesKeepTheirPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "nodes")
		c := newCluster(n)
		c.tick, c.hysteresis = time.Second, 10*time.Second
		for _, n := range c.nodes {
			n.reg.Total = crdt.Resources{
				CPUs: rapid.IntRange(1, 2).Draw(t, "cpus"), Memory: rapid.Uint64Range(1, 4).Draw(t, "memory") << 29, Disk: rapid.Uint64Range(1, 5).Draw(t, "disk") * (5 << 30),
			}
		}
		node := func() int { return rapid.IntRange(1, n).Draw(t, "node") }
		for range rapid.IntRange(1, 10).Draw(t, "events") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0, 1: // several at once, of two owners
				for range rapid.IntRange(1, 4).Draw(t, "shipped") {
					id := fmt.Sprint("i", len(c.sizes))
					c.ship(id, rapid.IntRange(1, 3).Draw(t, "replicas"), "p1")
					s := c.specs[id]
					s.Owner[0] -= byte(len(c.sizes) % 2)
					s.VCPU = rapid.IntRange(1, 3).Draw(t, "vcpu")
					c.sign(s)
				}
			case 2:
				c.node(node()).side = rapid.IntRange(0, 1).Draw(t, "side")
			case 3:
				c.heal()
			case 4:
				c.kill(node(), rapid.Bool().Draw(t, "vms"))
				c.start(node())
			case 5:
				r := &c.node(node()).reg
				r.Draining = !r.Draining
			case 6, 7, 8:
				for range rapid.IntRange(1, 2).Draw(t, "resized") {
					c.change(instance(t, c), "other sizes", func(s *crdt.Spec) {
						s.VCPU = rapid.IntRange(1, 6).Draw(t, "vcpu")
						s.MemoryBytes = rapid.Uint64Range(1, 5).Draw(t, "memory") << 29
						s.DiskBytes = rapid.Uint64Range(1, 3).Draw(t, "disk") * (5 << 30)
						s.Phase = rapid.SampledFrom([]crdt.Phase{crdt.PhaseRunning, crdt.PhaseRunning, crdt.PhaseStopped}).Draw(t, "phase")
					})
				}
			case 9:
				c.remove(instance(t, c))
			}
			for range rapid.IntRange(1, 25).Draw(t, "seconds") {
				c.run(time.Second)
				for _, n := range c.nodes {
					if why := promised(c, n); why != "" {
						t.Fatalf("n%d: %s\n%s", n.id, why, c.log.String())
					}
				}
			}
		}
		if len(c.bad) > 0 {
			t.Fatal(strings.Join(c.bad, "\n"))
		}
	})
}

// instance draws one that was shipped.
func instance(t *rapid.T, c *cluster) string {
	return fmt.Sprint("i", rapid.IntRange(0, max(len(c.sizes)-1, 0)).Draw(t, "instance"))
}

// promised says what a node's VMs, and claims that have none yet, take beyond what
// it has.
func promised(c *cluster, n *simNode) string {
	var sum crdt.Resources
	for _, vm := range n.vms {
		sum = plus(sum, vm.size)
	}
	for s, cl := range n.claims {
		waits := cl.Phase == crdt.ClaimClaimed || cl.Phase == crdt.ClaimFetching || cl.Phase == crdt.ClaimLaunching
		if waits && n.vms[VMID(s.Instance, s.Slot)] == nil {
			sum = plus(sum, c.sizes[s.Instance][cl.SpecGeneration])
		}
	}
	has := n.reg.Total
	switch {
	case sum.CPUs > has.CPUs*CPUOvercommit:
		return fmt.Sprintf("%d vCPUs of %d", sum.CPUs, has.CPUs*CPUOvercommit)
	case sum.Memory > has.Memory:
		return fmt.Sprintf("%d MiB of memory of %d", sum.Memory>>20, has.Memory>>20)
	case sum.Disk > has.Disk:
		return fmt.Sprintf("%d MiB of disk of %d", sum.Disk>>20, has.Disk>>20)
	}
	return ""
}

// TestGrowthWaitsForRoom: a replica stays as it is while its node has no room for
// what its owner asks for, and says so; it grows when there is room.
func TestGrowthWaitsForRoom(t *testing.T) {
	c := newCluster(2)
	c.ship("web", 1, "p1")
	c.ship("db", 2, "p1")
	c.run(10 * time.Second)
	boots := func() int { return c.node(c.holder("web", 0)).vms["web-0"].boots }
	c.change("web", "wants 4 GiB", func(s *crdt.Spec) { s.MemoryBytes = 4 << 30 })
	c.run(10 * time.Second)
	said := c.explain(1, "web")
	spec := c.specs["web"]
	word, reason := Status(c.world(c.node(1)), &spec)
	said += word + " { " + reason + " }\n"
	if boots() != 1 {
		t.Errorf("the replica booted %d times", boots())
	}
	c.remove("db")
	c.run(20 * time.Second)
	if word, reason := Status(c.world(c.node(1)), &spec); word != Success || boots() != 2 {
		t.Errorf("%s { %s } with room, and %d boots", word, reason, boots())
	}
	for _, n := range c.nodes {
		said = strings.ReplaceAll(said, n.key.String(), c.name(n.key))
	}
	golden(t, "growth-without-room", c.log.String()+said)
}
