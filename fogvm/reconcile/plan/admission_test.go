package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
)

// TestNodesKeepTheirPromises: whatever is shipped at once, split, healed, killed
// or drained, at no moment have a node's claims more memory, disk or CPUs in sum
// than it has.
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
			switch rapid.IntRange(0, 5).Draw(t, "event") {
			case 0, 1: // several at once, of two owners
				for range rapid.IntRange(1, 4).Draw(t, "shipped") {
					id := fmt.Sprint("i", len(c.specs))
					c.ship(id, rapid.IntRange(1, 3).Draw(t, "replicas"), "p1")
					s := c.specs[id]
					s.Owner[0] -= byte(len(c.specs) % 2)
					s.VCPU = rapid.IntRange(1, 3).Draw(t, "vcpu")
					c.specs[id] = s
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

// promised says what a node has claimed beyond what it has.
func promised(c *cluster, n *simNode) string {
	var sum crdt.Resources
	for s, cl := range n.claims {
		spec, there := c.specs[s.Instance]
		if !there || cl.Phase == crdt.ClaimFailed {
			continue
		}
		need := place.Need(spec)
		sum.CPUs, sum.Memory, sum.Disk = sum.CPUs+need.CPUs, sum.Memory+need.Memory, sum.Disk+need.Disk
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
