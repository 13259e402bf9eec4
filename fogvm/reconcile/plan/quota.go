package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// What has a share of its owner's quota first.
const (
	shareRuns    = iota // a node has it, as the spec is now
	shareChanges        // a node has it, as the spec was
	shareNew            // nobody has it
)

// share is a slot that counts against its owner's quota.
type share struct {
	spec  *crdt.Spec
	slot  int
	class int
}

// excess is why a slot is over its owner's quota.
type excess struct {
	why string
	// change: it is only what its owner changed last that is, so the replica stays
	// as it was, and counts as all that is left.
	change bool
}

// overQuota says which slots of an owner's instances may not run, and why; nil
// when nothing bounds the owner. What a node has a claim on counts first, so a
// new instance, a further replica or a larger size never ends what runs; among
// equals the lower instance ID does, then the lower slot. Whose node is alive is
// not asked: equal views give equal answers.
func (w World) overQuota(owner stmt.Key) map[Slot]excess {
	if w.Quota == nil {
		return nil
	}
	quota, bounded := w.Quota(owner)
	if !bounded {
		return nil
	}
	over := map[Slot]excess{}
	var sum stmt.Quota
	begun := map[string]bool{}
	for _, sh := range w.shares(owner) {
		next, need := sum, place.Need(*sh.spec)
		if !begun[sh.spec.ID] {
			next.Instances++
		}
		next.Replicas++
		next.CPUs, next.Memory, next.Disk = next.CPUs+need.CPUs, next.Memory+need.Memory, next.Disk+need.Disk
		if bound := exceeded(next, quota); bound != "" {
			few := stmt.Quota{Instances: next.Instances, Replicas: next.Replicas}
			change := sh.class == shareChanges && exceeded(few, quota) == ""
			over[Slot{sh.spec.ID, sh.slot}] = excess{"over its owner's quota: " + bound + " allowed", change}
			if !change {
				continue
			}
			next = cut(next, quota)
		}
		sum, begun[sh.spec.ID] = next, true
	}
	return over
}

// shares lists what counts against an owner's quota, in the order in which it
// does.
func (w World) shares(owner stmt.Key) []share {
	var out []share
	for i := range w.Instances {
		if w.Instances[i].Owner != owner {
			continue
		}
		s := active(&w.Instances[i])
		class := map[int]int{}
		for _, c := range w.Claims[s.ID] {
			if c.Phase == crdt.ClaimDraining {
				continue
			}
			now := shareRuns
			if c.SpecGeneration < s.Generation {
				now = shareChanges
			}
			if before, seen := class[c.Slot]; !seen || now < before {
				class[c.Slot] = now
			}
		}
		for slot := range s.Replicas {
			if now, claimed := class[slot]; claimed {
				out = append(out, share{s, slot, now})
			} else if runnable(s) {
				out = append(out, share{s, slot, shareNew})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b share) int { return cmp.Compare(a.class, b.class) })
	return out
}

// cut is sum without what is over the sizes of quota.
func cut(sum, quota stmt.Quota) stmt.Quota {
	if quota.CPUs > 0 {
		sum.CPUs = min(sum.CPUs, quota.CPUs)
	}
	if quota.Memory > 0 {
		sum.Memory = min(sum.Memory, quota.Memory)
	}
	if quota.Disk > 0 {
		sum.Disk = min(sum.Disk, quota.Disk)
	}
	return sum
}

// exceeded is the first bound of quota that sum is over, in words; else empty.
func exceeded(sum, quota stmt.Quota) string {
	switch {
	case quota.Instances > 0 && sum.Instances > quota.Instances:
		return counted(quota.Instances, "instance")
	case quota.Replicas > 0 && sum.Replicas > quota.Replicas:
		return counted(quota.Replicas, "replica")
	case quota.CPUs > 0 && sum.CPUs > quota.CPUs:
		return counted(quota.CPUs, "vCPU")
	case quota.Memory > 0 && sum.Memory > quota.Memory:
		return fmt.Sprintf("%d MiB of memory", quota.Memory>>20)
	case quota.Disk > 0 && sum.Disk > quota.Disk:
		return fmt.Sprintf("%d MiB of disk", quota.Disk>>20)
	}
	return ""
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// over is why a slot may not run by its owner's quota; zero when it may.
func (p *planner) over(s *crdt.Spec, slot int) excess {
	if p.quotas == nil {
		p.quotas = map[stmt.Key]map[Slot]excess{}
	}
	slots, known := p.quotas[s.Owner]
	if !known {
		slots = p.World.overQuota(s.Owner)
		p.quotas[s.Owner] = slots
	}
	return slots[Slot{s.ID, slot}]
}

// whollyOver says whether no slot of s may run by its owner's quota.
func (p *planner) whollyOver(s *crdt.Spec) bool {
	for slot := range s.Replicas {
		if p.over(s, slot).why == "" {
			return false
		}
	}
	return s.Replicas > 0
}
