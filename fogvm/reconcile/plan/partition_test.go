package plan

import (
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// under ships an instance under a partition contract; its voters are nodes.
func (c *cluster) under(contract, id string, replicas int, voters ...int) {
	c.ship(id, replicas, "p1")
	s := c.specs[id]
	s.Partition = contract
	for _, v := range voters {
		s.Voters = append(s.Voters, c.node(v).key)
	}
	c.specs[id] = s
	c.logf("its contract is %s, its voters n%v", contract, voters)
}

// others are the nodes but for these.
func (c *cluster) others(ids ...int) (out []int) {
	for _, n := range c.nodes {
		if !contains(ids, n.id) {
			out = append(out, n.id)
		}
	}
	return out
}

func contains(ids []int, id int) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}

func TestStopMinority(t *testing.T) {
	ship := func(c *cluster, replicas int) {
		c.under(crdt.PartitionStopMinority, "web", replicas, 1, 2, 3)
		c.run(10 * time.Second)
	}
	checkScenarios(t, []scenario{
		{"stop-minority-cut-off", 4, func(c *cluster) {
			ship(c, 1)
			holder := c.holder("web", 0)
			disk := c.node(holder).vms["web-0"]
			c.split([]int{holder}, c.others(holder))
			c.run(detect + 500*time.Millisecond)
			if vm := c.node(holder).vms["web-0"]; vm != disk || vm.run {
				c.violate("the minority runs on, or lost its disk: %+v", vm)
			}
			c.run(40 * time.Second)
			if h := c.holder("web", 0); h == holder || h == 0 {
				c.violate("n%d holds the slot", h)
			}
			c.heal()
			c.run(30 * time.Second)
		}},
		{"stop-minority-comes-back", 3, func(c *cluster) {
			ship(c, 1)
			holder := c.holder("web", 0)
			c.split([]int{1}, []int{2}, []int{3})
			c.run(60 * time.Second)
			for id := range 3 {
				for _, vm := range c.node(id + 1).vms {
					if vm.run {
						c.violate("n%d runs it, and sees nobody", id+1)
					}
				}
			}
			c.heal()
			c.run(20 * time.Second)
			if h := c.holder("web", 0); h != holder {
				c.violate("n%d runs it, not n%d, which kept the disk", h, holder)
			}
		}},
		{"stop-minority-without-its-voters", 5, func(c *cluster) {
			// The larger side has one voter of three: it counts for nothing.
			c.under(crdt.PartitionStopMinority, "web", 2, 1, 2, 3)
			c.run(10 * time.Second)
			c.split([]int{1, 2}, []int{3, 4, 5})
			c.run(40 * time.Second)
			for _, id := range []int{3, 4, 5} {
				for _, vm := range c.node(id).vms {
					if vm.run {
						c.violate("n%d runs it, and sees one voter", id)
					}
				}
			}
			c.heal()
			c.run(60 * time.Second)
		}},
		{"stop-minority-restarts-there", 3, func(c *cluster) {
			ship(c, 1)
			holder := c.holder("web", 0)
			c.kill(holder, false)
			c.run(2 * time.Second)
			c.start(holder)
			c.run(10 * time.Second)
			if vm := c.node(holder).vms["web-0"]; vm == nil || vm.boots != 1 {
				c.violate("a restart stopped the VM: %+v", vm)
			}
		}},
	})
}

// A contract that counts voters fails with a reason when none are signed, and so
// does one of a later version.
func TestContractsThatCannotBeKept(t *testing.T) {
	for contract, want := range map[string]string{
		crdt.PartitionStopMinority: "partition contract stop-minority needs voters, and none are signed",
		"quorum":                   `partition contract "quorum" is not known to this version`,
	} {
		c := newCluster(3)
		c.under(contract, "web", 1)
		c.run(20 * time.Second)
		s := c.specs["web"]
		if word, reason := Status(c.world(c.node(1)), &s); word != Failure || reason != want {
			t.Errorf("%s: %s, %s", contract, word, reason)
		}
		if h := c.holder("web", 0); h != 0 {
			t.Errorf("%s: n%d runs it", contract, h)
		}
	}
}

// The status on a side that sees too few voters says so.
func TestStatusOfTheMinority(t *testing.T) {
	c := newCluster(3)
	c.under(crdt.PartitionStopMinority, "web", 1, 1, 2, 3)
	c.run(10 * time.Second)
	c.split([]int{1}, []int{2, 3})
	c.run(60 * time.Second)
	s := c.specs["web"]
	for id, want := range map[int]string{1: "PENDING this side sees 1 of 3 voters, and it runs where most of them are", 2: "SUCCESS "} {
		word, reason := Status(c.world(c.node(id)), &s)
		if got := word + " " + reason; got != want {
			t.Errorf("on n%d: %s, want %s", id, got, want)
		}
	}
}

// A node whose state is not synchronised stops what must not run without voters
// that are dead, keeps the rest, and does nothing about those it has not met.
func TestIsolated(t *testing.T) {
	w, s := world3()
	s.Partition, s.Voters = crdt.PartitionStopMinority, []stmt.Key{{1}, {2}, {3}}
	w.Claims["web"] = []crdt.Claim{claimOf(1, 0, crdt.ClaimRunning, true)}
	vms := map[string]VMStatus{"web-0": {Phase: VMRunning, Incarnation: "i"}, "other-0": {Phase: VMRunning}}
	for _, tc := range []struct {
		dead []stmt.Key
		run  []bool // nil: nothing to do
	}{
		{nil, nil}, {[]stmt.Key{{2}}, nil}, {[]stmt.Key{{2}, {3}}, []bool{true, false}},
	} {
		w.Dead = map[stmt.Key]time.Duration{}
		for _, k := range tc.dead {
			w.Dead[k] = 1
		}
		var run []bool
		for _, v := range Isolated(w, stmt.Key{1}, vms) {
			run = append(run, v.Run)
			if !v.Keep {
				t.Errorf("%s is not left as it is", v.ID)
			}
		}
		if len(run) != len(tc.run) || len(run) == 2 && (run[0] != tc.run[0] || run[1] != tc.run[1]) {
			t.Errorf("dead %v: run %v, want %v", tc.dead, run, tc.run)
		}
	}
	vms["web-0"] = VMStatus{Phase: VMStopped}
	if got := Isolated(w, stmt.Key{1}, vms); got != nil {
		t.Errorf("what is stopped already is stopped again: %+v", got)
	}
}
