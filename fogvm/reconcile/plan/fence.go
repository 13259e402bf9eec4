package plan

import (
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Lease is the right to run the one active replica of a fenced instance, which
// most of its voters grant.
type Lease struct {
	Instance string
	Slot     int
	Term     uint64
	Voters   []stmt.Key
}

// LeaseStatus is how a lease does that this node asks for.
type LeaseStatus struct {
	Held   bool
	Reason string // why not
	// Outdated: voters know a later claim on the slot, by which nobody holds it.
	Outdated bool
}

// active is s as its slots are counted: under fence one replica runs, and the
// others are standbys, which hold the pack and have no claim.
func active(s *crdt.Spec) *crdt.Spec {
	if s.Partition != crdt.PartitionFence || s.Replicas <= 1 {
		return s
	}
	one := *s
	one.Replicas = 1
	return &one
}

// ask has the lease asked for, or renewed.
func (p *planner) ask(s *crdt.Spec, c crdt.Claim) {
	if n := len(p.out.Leases); n > 0 && p.out.Leases[n-1].Instance == s.ID {
		return
	}
	p.out.Leases = append(p.out.Leases, Lease{Instance: s.ID, Slot: c.Slot, Term: s.Term, Voters: s.Voters})
}

// awaitLease keeps a VM from being launched before the lease is held, and stops
// one that no shim fences, since the contract was another when it was launched.
// It reports whether that is all there is to do.
func (p *planner) awaitLease(s *crdt.Spec, c crdt.Claim, id string, vm VMStatus, there bool) bool {
	lease := p.Leases[s.ID]
	up := there && vm.Phase != VMStopped
	if !up {
		p.ask(s, c)
	}
	if lease.Held || up && vm.Fenced {
		return false
	}
	if there {
		p.out.VMs = append(p.out.VMs, VM{
			ID: id, Slot: Slot{c.Instance, c.Slot}, Pack: c.Pack, Incarnation: vm.Incarnation, Restart: vm.Restart, Keep: true,
		})
	}
	c.Phase, c.Ready, c.StartedAt, c.ReadyAt = crdt.ClaimLaunching, false, 0, 0
	c.SSHHostKey, c.MeshKey = "", ""
	c.Reason = waitsForLease
	if lease.Reason != "" {
		c.Reason += ": " + lease.Reason
	}
	p.out.Claims = append(p.out.Claims, c)
	return true
}

const waitsForLease = "waits for the lease"

// waits says whether the keeper of a fenced instance has all it needs but the
// lease, which this node must give up for it.
func waits(s *crdt.Spec, keeper crdt.Claim) bool {
	return s.Partition == crdt.PartitionFence && keeper.Phase != crdt.ClaimClaimed && keeper.Phase != crdt.ClaimFetching
}

// raise makes the generation of a claim that keeps its slot, and gets no lease
// because of claims of nodes that are away, higher than theirs: voters grant one
// only to the latest claim they know.
func (p *planner) raise(s *crdt.Spec, claims []crdt.Claim, c *crdt.Claim) {
	if !p.Leases[s.ID].Outdated {
		return
	}
	for _, o := range claims {
		if o.Slot == c.Slot && o.Node != c.Node && o.Generation > c.Generation {
			c.Generation = min(o.Generation+1, crdt.MaxGeneration)
		}
	}
}
