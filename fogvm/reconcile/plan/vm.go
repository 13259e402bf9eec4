package plan

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"github.com/formthefog/formation/crdt"
)

// VMID is the host-unique name of a replica's VM.
func VMID(instance string, slot int) string { return instance + "-" + strconv.Itoa(slot) }

var lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Incarnation changes when a replica must start over with an empty disk: on
// another pack or disk size, and when its owner asks for it.
func Incarnation(s *crdt.Spec, pack string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%d\x00%d", pack, s.DiskBytes, s.Recreate)
	return lower.EncodeToString(h.Sum(nil)[:10])
}

// RestartToken changes when a replica must boot again with its disk.
func RestartToken(s *crdt.Spec) uint64 {
	h := sha256.New()
	fmt.Fprintf(h, "%d\x00%d\x00%d\x00", s.Restart, s.VCPU, s.MemoryBytes)
	for _, k := range sortedKeys(s.Env) {
		fmt.Fprintf(h, "%q=%q\x00", k, s.Env[k])
	}
	fmt.Fprintf(h, "\x00%q\x00%q\x00%q", s.SSHKeys, s.Expose, s.Name)
	if s.Partition == crdt.PartitionFence {
		fmt.Fprint(h, "\x00fence")
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// run wants the VM of a claim this node keeps, and says how it does. It reports
// false when there is no VM, nor room for one: the slot is given up.
func (p *planner) run(s *crdt.Spec, claims []crdt.Claim, c crdt.Claim) bool {
	id := VMID(c.Instance, c.Slot)
	vm, there := p.VMs[id]
	p.keep[c.Pack], p.keep[s.Pack] = true, true
	if s.Phase == crdt.PhaseStopped {
		p.stop(s, c, vm, there)
		return true
	}
	incarnation, restart := Incarnation(s, s.Pack), RestartToken(s)
	current := there && vm.Incarnation == incarnation && vm.Restart == restart
	if s.Partition == crdt.PartitionFence {
		p.raise(s, claims, &c)
		if there && vm.Phase != VMStopped {
			p.ask(s, c)
		}
	}
	if !current && there && vm.Ready && !p.turn(s, claims, c) {
		p.fetch(s.Pack, true)
		p.retain(c, id, vm, "waits for its turn in the rollout")
		return true
	}
	if why := p.grow(s, c); why != "" {
		return p.refuseChange(s, c, why)
	}
	if p.Packs[s.Pack].State != Complete && vm.Incarnation != incarnation {
		p.awaitPack(s, c, id, vm, there)
		return true
	}
	if p.Packs[s.Pack].State != Complete {
		p.fetch(s.Pack, true)
	}
	if p.Secrets[s.ID] != "" && (!current || vm.Phase == VMStopped) {
		p.awaitSecrets(s, c, id, vm, there)
		return true
	}
	c.Pack, c.SpecGeneration = s.Pack, s.Generation
	if s.Partition == crdt.PartitionFence && p.awaitLease(s, c, id, vm, there) {
		return true
	}
	p.out.VMs = append(p.out.VMs, VM{
		ID: id, Slot: Slot{c.Instance, c.Slot}, Pack: s.Pack, Run: true, Incarnation: incarnation, Restart: restart,
		Fenced: s.Partition == crdt.PartitionFence,
	})
	if current {
		p.observeVM(&c, vm)
		c.Reason = orElse(c.Reason, p.Secrets[s.ID])
	} else {
		c.Phase, c.Ready, c.Reason, c.StartedAt, c.ReadyAt = crdt.ClaimLaunching, false, "", 0, 0
		c.SSHHostKey, c.MeshKey = "", ""
	}
	p.out.Claims = append(p.out.Claims, c)
	return true
}

// turn says whether it is this replica's turn in the rollout of a change: all
// lower slots that anybody is concerned with serve the spec as it is now. One
// that fails stops the rollout, and what serves goes on serving.
func (p *planner) turn(s *crdt.Spec, claims []crdt.Claim, c crdt.Claim) bool {
	for slot := range c.Slot {
		if best, ok := p.World.shown(s, claims, slot); ok && (!best.Ready || best.SpecGeneration < s.Generation) {
			return false
		}
	}
	return true
}

// retain leaves a VM as it is.
func (p *planner) retain(c crdt.Claim, id string, vm VMStatus, reason string) {
	p.observeVM(&c, vm)
	if c.Reason == "" {
		c.Reason = reason
	}
	p.out.Claims = append(p.out.Claims, c)
	p.out.VMs = append(p.out.VMs, VM{
		ID: id, Slot: Slot{c.Instance, c.Slot}, Pack: c.Pack, Run: true, Incarnation: vm.Incarnation,
		Restart: vm.Restart, Keep: true,
	})
}

// awaitPack fetches the pack; a VM of an older one runs on meanwhile.
func (p *planner) awaitPack(s *crdt.Spec, c crdt.Claim, id string, vm VMStatus, there bool) {
	p.fetch(s.Pack, true)
	pack := p.Packs[s.Pack]
	if there && c.Pack != s.Pack {
		reason := "fetches its next pack"
		if pack.Reason != "" {
			reason += ": " + pack.Reason
		}
		p.retain(c, id, vm, reason)
		return
	}
	c.Pack, c.SpecGeneration, c.Ready, c.Reason = s.Pack, s.Generation, false, pack.Reason
	c.StartedAt, c.ReadyAt = 0, 0
	c.Phase = crdt.ClaimFetching
	if pack.Attempts >= fetchAttempts {
		c.Phase = crdt.ClaimFailed
	}
	p.out.Claims = append(p.out.Claims, c)
}

// awaitSecrets starts nothing while the instance's secrets are not known; a VM
// that has them runs on meanwhile.
func (p *planner) awaitSecrets(s *crdt.Spec, c crdt.Claim, id string, vm VMStatus, there bool) {
	if there && vm.Phase != VMStopped {
		p.retain(c, id, vm, p.Secrets[s.ID])
		return
	}
	if there {
		p.out.VMs = append(p.out.VMs, VM{
			ID: id, Slot: Slot{c.Instance, c.Slot}, Pack: c.Pack, Incarnation: vm.Incarnation, Restart: vm.Restart, Keep: true,
		})
	} else {
		c.Pack = s.Pack
	}
	c.Phase, c.Ready, c.Reason, c.StartedAt, c.ReadyAt = crdt.ClaimClaimed, false, p.Secrets[s.ID], 0, 0
	c.SpecGeneration, c.SSHHostKey, c.MeshKey = s.Generation, "", ""
	p.out.Claims = append(p.out.Claims, c)
}

// stop has the VM shut down with its disk kept, or says that it is.
func (p *planner) stop(s *crdt.Spec, c crdt.Claim, vm VMStatus, there bool) {
	c.Ready, c.Reason, c.ReadyAt, c.Phase = false, "", 0, crdt.ClaimStopped
	if there {
		c.SpecGeneration = s.Generation
		p.out.VMs = append(p.out.VMs, VM{
			ID: VMID(c.Instance, c.Slot), Slot: Slot{c.Instance, c.Slot}, Pack: c.Pack, Run: false,
			Incarnation: vm.Incarnation, Restart: vm.Restart, Keep: true,
		})
		if vm.Phase != VMStopped {
			c.Phase, c.Reason = crdt.ClaimRunning, "stopping"
		}
	}
	p.out.Claims = append(p.out.Claims, c)
}

// bootLimit is how long a guest may take until its agent answers. Emulated and
// on a busy machine a minute is usual. Its shim ends such a guest as well; this
// frees the slot also where the shim hangs.
const bootLimit = 10 * time.Minute

// observeVM copies what is known of the VM into its claim.
func (p *planner) observeVM(c *crdt.Claim, vm VMStatus) {
	c.Ready, c.Reason, c.Accel = vm.Ready, vm.Reason, vm.Accel
	c.StartedAt, c.ReadyAt = vm.StartedAt, vm.ReadyAt
	c.SSHHostKey, c.MeshKey = vm.SSHHostKey, vm.MeshKey
	if vm.Phase == VMLaunching && vm.StartedAt != 0 && !vm.Booted {
		boot := Boot{VMID(c.Instance, c.Slot), vm.StartedAt}
		end := first(p.Timers.Boots, p.out.Timers.Boots, boot, p.Now) + bootLimit
		if p.Now >= end {
			c.Phase, c.Reason = crdt.ClaimFailed, orElse(vm.Reason, fmt.Sprintf("the guest did not come up within %v", bootLimit))
			return
		}
		p.wake(end)
	}
	switch vm.Phase {
	case VMRunning:
		c.Phase = crdt.ClaimRunning
	case VMUnhealthy:
		c.Phase = crdt.ClaimUnhealthy
	case VMFailed:
		c.Phase = crdt.ClaimFailed
	default:
		c.Phase = crdt.ClaimLaunching
	}
}
