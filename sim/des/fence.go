package des

import (
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// Executing are the nodes whose virtual machine of a replica runs at this moment,
// that of one that nobody can reach as well.
func (s *Sim) Executing(slot plan.Slot) []int {
	id := plan.VMID(slot.Instance, slot.Slot)
	var out []int
	for i, n := range s.nodes {
		if v := n.vms[id]; v != nil && n.executes(v) {
			out = append(out, i)
		}
	}
	return out
}

// heed notes the contracts of all instances, as their owners have them.
func (s *Sim) heed() {
	s.contracts, s.fenced = false, nil
	for _, o := range s.owners {
		for _, spec := range o.author.Instances() {
			s.contracts = s.contracts || len(spec.Voters) > 0
			if spec.Partition == crdt.PartitionFence {
				s.fenced = append(s.fenced, spec.ID)
			}
		}
	}
}

// checkFences holds, after every event, that no two virtual machines of a fenced
// instance run.
func (s *Sim) checkFences() {
	for _, id := range s.fenced {
		on := s.Executing(plan.Slot{Instance: id})
		if len(on) < 2 {
			delete(s.checks.doubled, id)
			continue
		}
		if s.checks.doubled == nil {
			s.checks.doubled = map[string]bool{}
		}
		if !s.checks.doubled[id] {
			s.checks.doubled[id] = true
			s.broke(FencedOnce, "%.8s, which is fenced, runs on %v at once", id, on)
		}
	}
}
