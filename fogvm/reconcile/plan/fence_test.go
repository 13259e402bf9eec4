package plan

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/stmt"
)

// leaseTimes are those of the simulated nodes.
var leaseTimes = lease.Times{Lease: 12 * time.Second, Margin: 2 * time.Second}

// booth is where a node votes and holds leases: the real steps, whose messages
// take no time and reach whom the node reaches.
type booth struct {
	voter  *lease.Voter
	tenant *Tenant
	until  map[string]time.Duration // of VMs, by ID: what their shims were told
}

func (c *cluster) booth(n *simNode) *booth {
	if c.booths == nil {
		c.booths = map[int]*booth{}
	}
	b := c.booths[n.id]
	if b == nil {
		// It has been there for long.
		v := lease.NewVoter(leaseTimes, "boot", epoch, &lease.Memory{Boot: "boot"})
		b = &booth{voter: v, tenant: NewTenant(leaseTimes, n.key), until: map[string]time.Duration{}}
		c.booths[n.id] = b
	}
	return b
}

func (c *cluster) mayRun(n *simNode, id string, vm *simVM) bool {
	return !vm.fenced || epoch+c.now < c.booth(n).until[id]
}

func (c *cluster) leases(n *simNode) map[string]LeaseStatus {
	return c.booth(n).tenant.Status(epoch + c.now)
}

// lease does for one node what the driver does.
func (c *cluster) lease(n *simNode, want []Lease) {
	b := c.booth(n)
	b.tenant.Want(want)
	vms := map[string]FencedVM{}
	for id, vm := range n.vms {
		vms[id] = FencedVM{Fenced: vm.fenced, HeldUntil: b.until[id], Stopped: !vm.run}
	}
	for news := true; news; {
		out := b.tenant.Step(epoch+c.now, vms, func() uint64 { return uint64(c.now) })
		news = c.post(n, out.Asks)
		for _, e := range out.Tell {
			b.until[e.VM] = max(b.until[e.VM], e.Until)
			b.tenant.Told(e)
		}
	}
	maps.DeleteFunc(b.until, func(id string, _ time.Duration) bool { return n.vms[id] == nil || !n.vms[id].run })
}

// post puts questions to voters, and says whether a lease goes further by that.
func (c *cluster) post(n *simNode, asks []lease.Ask) (news bool) {
	for len(asks) > 0 {
		a := asks[0]
		asks = asks[1:]
		i := slices.IndexFunc(c.nodes, func(o *simNode) bool { return o.key == a.To })
		if i < 0 || c.nodes[i] != n && !c.reach(n, c.nodes[i]) {
			continue
		}
		more, further := c.booth(n).tenant.Answer(epoch+c.now, a, c.judge(c.nodes[i], n, a.Request))
		asks, news = append(asks, more...), news || further
	}
	return news
}

// judge is what a voter's driver does: it answers by the state it has.
func (c *cluster) judge(voter, from *simNode, r lease.Request) lease.Answer {
	s, ok := c.specs[r.Instance]
	if !ok || !slices.Contains(s.Voters, voter.key) || r.Set != lease.SetOf(s.Term, s.Voters) {
		return lease.Answer{Reason: "not a voter"}
	}
	known, claims := uint64(0), false
	for _, cl := range c.world(voter).Claims[r.Instance] {
		if cl.Slot != 0 || cl.Phase == crdt.ClaimFailed {
			continue
		}
		known = max(known, cl.Generation)
		if cl.Node == from.key {
			r.Generation, claims = cl.Generation, true
		}
	}
	if !claims && !r.Release {
		return lease.Answer{Reason: "no claim"}
	}
	a, _ := c.booth(voter).voter.Ask(epoch+c.now, r, known)
	return a
}

// executing are the nodes whose VM of a fenced instance executes now.
func (c *cluster) executing(id string) (out []int) {
	for _, n := range c.nodes {
		if vm := n.vms[VMID(id, 0)]; vm != nil && vm.run && c.mayRun(n, VMID(id, 0), vm) {
			out = append(out, n.id)
		}
	}
	return out
}

// fencedRun is run, with a look at every moment.
func (c *cluster) fencedRun(d time.Duration) {
	for end := c.now + d; c.now < end; {
		for _, n := range c.nodes {
			if !n.up {
				c.booth(n).tenant = NewTenant(leaseTimes, n.key) // what VMs were told stays with them
			}
		}
		c.run(c.tick)
		if s, ok := c.specs["web"]; ok && s.Partition == crdt.PartitionFence {
			if out := c.executing("web"); len(out) > 1 {
				c.violate("web executes on n%v at once", out)
			}
		}
	}
}

func TestFence(t *testing.T) {
	ship := func(c *cluster) int {
		c.under(crdt.PartitionFence, "web", 2, 1, 2, 3)
		c.fencedRun(15 * time.Second)
		h := c.holder("web", 0)
		if h == 0 {
			c.violate("nobody runs it")
			return 1
		}
		return h
	}
	checkScenarios(t, []scenario{
		{"fence-cut-off", 4, func(c *cluster) {
			holder := ship(c)
			c.split([]int{holder}, c.others(holder))
			c.fencedRun(60 * time.Second)
			if out := c.executing("web"); len(out) != 1 || out[0] == holder {
				c.violate("n%v execute it", out)
			}
			c.heal()
			c.fencedRun(40 * time.Second)
		}},
		{"fence-short-cut", 4, func(c *cluster) {
			holder := ship(c)
			c.split([]int{holder}, c.others(holder))
			c.fencedRun(12 * time.Second)
			if out := c.executing("web"); len(out) != 0 {
				c.violate("n%v execute it: its lease has ended, and others wait", out)
			}
			c.heal()
			c.fencedRun(20 * time.Second)
			if out := c.executing("web"); len(out) != 1 || c.node(out[0]).vms["web-0"].boots != 1 {
				c.violate("n%v execute it", out)
			}
		}},
		{"fence-holder-dies", 4, func(c *cluster) {
			holder := ship(c)
			c.kill(holder, true)
			c.fencedRun(60 * time.Second)
			c.start(holder)
			c.fencedRun(40 * time.Second)
		}},
		{"fence-daemon-restarts", 3, func(c *cluster) {
			holder := ship(c)
			c.kill(holder, false)
			c.fencedRun(4 * time.Second)
			c.start(holder)
			c.fencedRun(20 * time.Second)
			if vm := c.node(holder).vms["web-0"]; vm == nil || vm.boots != 1 {
				c.violate("a restart of the daemon rebooted the VM: %+v", vm)
			}
		}},
		{"fence-drain", 4, func(c *cluster) {
			holder := ship(c)
			c.logf("n%d drains", holder)
			c.node(holder).reg.Draining = true
			c.fencedRun(40 * time.Second)
		}},
		{"fence-without-majority", 3, func(c *cluster) {
			holder := ship(c)
			for _, id := range c.others(holder) {
				c.kill(id, true)
			}
			c.fencedRun(60 * time.Second)
			if out := c.executing("web"); len(out) != 0 {
				c.violate("n%v execute it without a majority", out)
			}
			c.change("web", "signs new voters", func(s *crdt.Spec) { s.Voters, s.Term = []stmt.Key{c.node(holder).key}, s.Term+1 })
			c.fencedRun(40 * time.Second)
			if out := c.executing("web"); len(out) != 1 {
				c.violate("n%v execute it by the new voters", out)
			}
		}},
		{"keep-becomes-fence", 3, func(c *cluster) {
			c.ship("web", 1, "p1")
			c.run(10 * time.Second)
			c.change("web", "fences it", func(s *crdt.Spec) {
				s.Partition, s.Term = crdt.PartitionFence, 1
				for _, n := range c.nodes {
					s.Voters = append(s.Voters, n.key)
				}
			})
			c.fencedRun(40 * time.Second)
		}},
	})
}

// TestFencedAnyHistory: whatever happens, a fenced replica executes once at most;
// once every machine is back and together it is served.
func TestFencedAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(3, 5).Draw(t, "nodes")
		c := newCluster(n)
		c.tick = 500 * time.Millisecond
		some := func() int { return rapid.IntRange(1, n).Draw(t, "node") }
		c.under(crdt.PartitionFence, "web", 2, 1, 2, 3)
		t.Repeat(map[string]func(*rapid.T){
			"kill":  func(t *rapid.T) { c.kill(some(), rapid.Bool().Draw(t, "vms")) },
			"start": func(t *rapid.T) { c.start(some()) },
			"split": func(t *rapid.T) { c.node(some()).side = rapid.IntRange(0, 1).Draw(t, "side") },
			"heal":  func(t *rapid.T) { c.heal() },
			"drain": func(t *rapid.T) { x := c.node(some()); x.reg.Draining = !x.reg.Draining },
			"change": func(t *rapid.T) {
				c.change("web", "changes", func(s *crdt.Spec) {
					switch rapid.IntRange(0, 3).Draw(t, "what") {
					case 0:
						s.Restart++
					case 1:
						s.Pack = rapid.SampledFrom([]string{"p1", "p2"}).Draw(t, "pack")
					case 2:
						s.Phase = crdt.PhaseStopped
					case 3:
						s.Phase = crdt.PhaseRunning
					}
				})
			},
			"": func(t *rapid.T) {
				c.fencedRun(time.Duration(rapid.IntRange(1, 40).Draw(t, "halves")) * c.tick)
				if len(c.bad) > 0 {
					t.Fatalf("%s\n%s", fmt.Sprint(c.bad), c.log.String())
				}
			},
		})
		c.heal()
		for _, n := range c.nodes {
			c.start(n.id)
			n.reg.Draining = false
		}
		c.fencedRun(2 * time.Minute)
		if bad := append(c.bad, c.settled()...); len(bad) > 0 {
			t.Fatalf("%s\n%s", fmt.Sprint(bad), c.log.String())
		}
	})
}
