package plan

import (
	"fmt"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// counts says whether the partition contract of s counts voters.
func counts(s *crdt.Spec) bool {
	return s.Partition == crdt.PartitionStopMinority || s.Partition == crdt.PartitionFence
}

// contractRefusal says why the partition contract of s cannot be kept; empty
// when it can.
func contractRefusal(s *crdt.Spec) string {
	switch {
	case s.Partition == "" || s.Partition == crdt.PartitionKeep:
		return ""
	case !counts(s):
		return fmt.Sprintf("partition contract %q is not known to this version", s.Partition)
	case len(s.Voters) == 0:
		return fmt.Sprintf("partition contract %s needs voters, and none are signed", s.Partition)
	}
	return ""
}

// minority says that this node sees half of the voters of s or fewer, so that
// nothing of s may begin to run here; empty when it may.
func (w World) minority(s *crdt.Spec) string {
	if !counts(s) {
		return ""
	}
	n := 0
	for _, k := range s.Voters {
		if w.Seen[k] {
			n++
		}
	}
	return tooFew(n, s)
}

// lost is minority by what this node knows for certain, so that what runs here
// must end: a voter that was not heard of yet counts as seen, or a restart of
// this node would stop what runs.
func (w World) lost(s *crdt.Spec) string {
	if !counts(s) {
		return ""
	}
	n := 0
	for _, k := range s.Voters {
		if !w.dead(k) && w.nodeOf(k) != nil {
			n++
		}
	}
	return tooFew(n, s)
}

func tooFew(seen int, s *crdt.Spec) string {
	if 2*seen > len(s.Voters) {
		return ""
	}
	return fmt.Sprintf("sees %d of %d voters", seen, len(s.Voters))
}

// claimed says whether a node has a claim on s.
func (w World) claimed(s *crdt.Spec, node stmt.Key) bool {
	return slices.ContainsFunc(w.Claims[s.ID], func(c crdt.Claim) bool { return c.Node == node })
}

// halted says whether c says that its node stopped a replica because it sees
// too few voters. Such a claim does not keep others from the slot: who sees the
// majority takes it over as that of a failed replica.
func halted(s *crdt.Spec, c crdt.Claim) bool {
	return counts(s) && s.Phase != crdt.PhaseStopped && c.Phase == crdt.ClaimStopped
}

// outvoted says why the replica of c may not run here; empty when it may.
func (p *planner) outvoted(s *crdt.Spec, c crdt.Claim) string {
	if s.Phase == crdt.PhaseStopped {
		return ""
	}
	if vm, there := p.VMs[VMID(c.Instance, c.Slot)]; there && vm.Phase != VMStopped {
		return p.World.lost(s)
	}
	return p.World.minority(s)
}

// Isolated are the VMs that a node wants whose state is not synchronised: all that
// are here, as they are, but for those whose contract has them stopped because
// the voters are lost; fenced ones pause by themselves. nil: there are none such.
func Isolated(w World, self stmt.Key, vms map[string]VMStatus) []VM {
	halt := map[string]bool{}
	for i := range w.concerns(self) {
		s := &w.Instances[i]
		for _, c := range w.Claims[s.ID] {
			if id := VMID(c.Instance, c.Slot); c.Node == self && s.Partition == crdt.PartitionStopMinority && w.lost(s) != "" {
				halt[id] = vms[id].Phase != "" && vms[id].Phase != VMStopped
			}
		}
	}
	if !slices.Contains(slices.Collect(maps.Values(halt)), true) {
		return nil
	}
	var out []VM
	for _, id := range sortedKeys(vms) {
		vm := vms[id]
		out = append(out, VM{
			ID: id, Run: vm.Phase != VMStopped && !halt[id], Incarnation: vm.Incarnation, Restart: vm.Restart, Keep: true,
		})
	}
	return out
}

// halt stops the VM of a claim, disk kept, until the majority is seen again. A
// fenced one is left as it is: it pauses by itself when its lease ends, and goes
// on if nobody has taken it over by the time the voters are seen.
func (p *planner) halt(s *crdt.Spec, c crdt.Claim, why string) {
	if c.Phase == crdt.ClaimFailed {
		p.record(c)
		return
	}
	id := VMID(c.Instance, c.Slot)
	vm, there := p.VMs[id]
	p.keep[c.Pack], p.keep[s.Pack] = true, true
	if there && vm.Fenced && vm.Phase != VMStopped && s.Partition == crdt.PartitionFence {
		p.ask(s, c)
		p.retain(c, id, vm, why)
		if o := &p.out.Claims[len(p.out.Claims)-1]; o.Phase == crdt.ClaimUnhealthy {
			o.Phase, o.Reason = crdt.ClaimStopped, why
		}
		return
	}
	p.stop(s, c, vm, there)
	o := &p.out.Claims[len(p.out.Claims)-1]
	if o.Reason != "" {
		why = o.Reason + ": " + why
	}
	o.Reason = why
}
