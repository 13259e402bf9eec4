package plan

import (
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

func plus(a, b crdt.Resources) crdt.Resources {
	return crdt.Resources{CPUs: a.CPUs + b.CPUs, Memory: a.Memory + b.Memory, Disk: a.Disk + b.Disk}
}

// most is the larger of a and b in each kind.
func most(a, b crdt.Resources) crdt.Resources {
	return crdt.Resources{CPUs: max(a.CPUs, b.CPUs), Memory: max(a.Memory, b.Memory), Disk: max(a.Disk, b.Disk)}
}

// count finds what this node has promised, by VM ID: what each VM that is here
// was defined with, also one that is to go, and what claims are for that have
// none yet. What has still to be granted of a change is no part of it, but counts
// in used, as others count it: nothing new comes in before it.
func (p *planner) count() {
	p.parts = make(map[string]crdt.Resources, len(p.VMs))
	wishes := make(map[string]crdt.Resources, len(p.VMs))
	for id, vm := range p.VMs { // any order: each by itself
		p.parts[id] = vm.Size
	}
	for i := range p.World.concerns(p.Self) {
		s := &p.World.Instances[i]
		for _, c := range p.World.Claims[s.ID] {
			if c.Node != p.Self {
				continue
			}
			id, need := VMID(c.Instance, c.Slot), place.Need(*s)
			if c.Phase != crdt.ClaimFailed {
				wishes[id] = need
			}
			vm, there := p.VMs[id]
			granted := c.Phase != crdt.ClaimFailed && s.Phase != crdt.PhaseStopped && c.SpecGeneration >= s.Generation
			if granted || there && vm.Size == (crdt.Resources{}) {
				p.parts[id] = most(p.parts[id], need)
			}
		}
	}
	var used crdt.Resources
	for id, part := range p.parts { // any order: sums
		p.sum = plus(p.sum, part)
		used = plus(used, most(part, wishes[id]))
		delete(wishes, id)
	}
	for _, need := range wishes { // any order: a sum
		used = plus(used, need)
	}
	p.mine = used
}

// takes is what a node's claims take; of this node, all that it has promised.
func (p *planner) takes(k stmt.Key) crdt.Resources {
	if k == p.Self {
		return p.mine
	}
	return p.used[k]
}

// promise makes a VM's part as large as need at least.
func (p *planner) promise(id string, need crdt.Resources) {
	part := p.parts[id]
	to := most(part, need)
	p.sum.CPUs += to.CPUs - part.CPUs
	p.sum.Memory += to.Memory - part.Memory
	p.sum.Disk += to.Disk - part.Disk
	p.parts[id] = to
}

// grow promises what a claim's spec asks for by now, or says why this node has no
// room for it. What it has promised already is not looked at again.
func (p *planner) grow(s *crdt.Spec, c crdt.Claim) string {
	id, need := VMID(c.Instance, c.Slot), place.Need(*s)
	if p.self == nil {
		return ""
	}
	part, has := p.parts[id], p.self.Total
	switch {
	case need.CPUs > part.CPUs && p.sum.CPUs-part.CPUs+need.CPUs > has.CPUs*CPUOvercommit:
		return "its node has not enough CPUs free"
	case need.Memory > part.Memory && p.sum.Memory-part.Memory+need.Memory > has.Memory:
		return "its node has not enough memory free"
	case need.Disk > part.Disk && p.sum.Disk-part.Disk+need.Disk > has.Disk:
		return "its node has not enough disk free"
	}
	p.promise(id, need)
	return ""
}

// refusedChange begins what a claim says whose replica stays as it was.
const refusedChange = "the change is refused: "

// refuseChange leaves a replica as it was before its owner asked for what no
// machine gives, a quota does not, or this node cannot. It reports false when
// there is nothing to leave.
func (p *planner) refuseChange(s *crdt.Spec, c crdt.Claim, why string) bool {
	id := VMID(c.Instance, c.Slot)
	vm, there := p.VMs[id]
	switch {
	case !there && c.Phase == crdt.ClaimFailed:
		p.record(c)
		return true
	case !there:
		return false
	case s.Partition == crdt.PartitionFence && !vm.Fenced:
		p.drain(c, refusedChange+why) // nothing pauses it
		return false
	case s.Partition == crdt.PartitionFence:
		p.ask(s, c)
	}
	p.keep[c.Pack] = true
	p.retain(c, id, vm, refusedChange+why)
	return true
}
