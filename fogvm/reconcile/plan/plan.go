// Package plan decides what one node runs, fetches and says of it. Plan is a
// pure function of what the node knows: no clock, randomness, goroutine, disk
// or network.
//
// Guarantees, for nodes that hold equal views:
//
//   - they rank every slot alike, and a node claims a slot only in its turn;
//   - of several claims on a slot exactly one is the keeper for all of them, and
//     the keeper never gives way to a claim it outranks;
//   - two slots of an instance are never claimed by one node;
//   - nothing flaps: equal inputs (apart from time passing before Wake) give
//     equal outputs; a replica that runs keeps its slot until the ranking has
//     preferred another node for Input.Hysteresis, and every such move brings the
//     instance nearer to where the ranking wants it, so they come to an end.
//
// Not guaranteed: that a slot is claimed once while views differ. Both sides of
// a partition may run it; the surplus is trimmed when they meet.
package plan

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// DefaultTakeoverDelay is how long rank 0 waits for a dead node to come back
// (DESIGN §5).
const DefaultTakeoverDelay = 10 * time.Second

// rankStep is how much later each further rank claims a slot that never ran
// (DESIGN §5).
const rankStep = time.Second

// Input is everything a decision depends on. Plan does not modify it.
type Input struct {
	// Now is the time since boot, suspension included (package boottime); so are
	// all times here that decide something.
	Now   time.Duration
	Self  stmt.Key
	World World
	// VMs are the virtual machines of this host by VM ID.
	VMs map[string]VMStatus
	// Packs are the packs this node has or fetches; an absent entry is Absent.
	Packs map[string]PackStatus
	// Secrets says, by instance, why its secrets are not all known here as they
	// are now; an absent entry: they are, or it has none.
	Secrets map[string]string
	// Leases are those that this node asked for, by instance.
	Leases map[string]LeaseStatus
	// Accepts says whose instances may run here. nil accepts everybody.
	Accepts func(owner stmt.Key) bool
	// TakeoverDelay of zero is DefaultTakeoverDelay.
	TakeoverDelay time.Duration
	// Hysteresis is how long the ranking must have preferred another node before
	// a replica that runs moves there. Zero is DefaultHysteresis; below zero
	// nothing moves.
	Hysteresis time.Duration
	// Timers is the Output.Timers of the previous call; the zero value at first.
	Timers Timers
}

// Output is what the node should do. Lists have a fixed order.
type Output struct {
	Claims []crdt.Claim  // the full set of own claims
	VMs    []VM          // the full set of wanted VMs, by ID
	Fetch  []string      // packs to fetch, most urgent first
	Keep   []string      // packs that must not be collected, sorted
	Leases []Lease       // the full set of leases to ask for and to renew, by instance
	Wake   time.Duration // when to plan again if nothing changes; zero: never
	Timers Timers
}

// Slot names a replica of an instance.
type Slot struct {
	Instance string
	Slot     int
}

// Timers are what a node remembers between two calls, all of it first sightings
// of its own: losing them only delays a claim, or the end of a VM (see Remember).
type Timers struct {
	Empty     map[Slot]time.Duration   // since when nobody holds the slot
	Failed    map[Slot]time.Duration   // since when only failed claims hold it
	Boots     map[Boot]time.Duration   // since when a guest has not answered
	Stray     map[string]time.Duration // since when a VM, by ID, is of nothing ever known
	Known     map[string]bool          // VMs, by ID, whose instance was known once
	Repairs   []Repair                 // of the last minute, oldest first
	Preferred map[Slot]time.Duration   // since when this node ranks before the slot's holder
	Moves     []time.Duration          // of the last window of hysteresis
	Tries     map[string]int           // how often this node took a slot of the instance to no avail
	Trials    map[Slot]time.Duration   // since when a slot that another serves does not do well here
}

// Boot is one launch of a VM.
type Boot struct {
	VM        string // its ID
	StartedAt int64  // as in VMStatus: tells one launch from the next, no more
}

// VMPhase mirrors fogvm.Phase; the reconciler translates.
type VMPhase string

// The phases of a VM.
const (
	VMLaunching VMPhase = "launching"
	VMRunning   VMPhase = "running"
	VMUnhealthy VMPhase = "unhealthy"
	VMStopping  VMPhase = "stopping"
	VMStopped   VMPhase = "stopped"
	VMFailed    VMPhase = "failed"
)

// VMStatus is what is known of a VM on this host.
type VMStatus struct {
	Incarnation string
	Restart     uint64
	Phase       VMPhase
	Booted      bool // its agent has answered since StartedAt
	Ready       bool
	Reason      string
	Accel       string
	StartedAt   int64 // Unix seconds, 0 = not yet
	ReadyAt     int64
	SSHHostKey  string
	MeshKey     string
	Fenced      bool // it runs only while a lease lasts
	// Owner is whose instance it was defined for. Zero: not known.
	Owner stmt.Key
	// Size is the largest that it was defined with and may still have. Zero: not
	// known, and taken to be what its spec says.
	Size crdt.Resources
}

// VM is one wanted virtual machine.
type VM struct {
	ID string // VMID of Slot
	Slot
	Pack string
	Run  bool
	// Fenced: it is to run only while a lease lasts.
	Fenced bool
	// Incarnation and Restart as fogvm.VM has them.
	Incarnation string
	Restart     uint64
	// Keep: leave the VM exactly as it was last defined; its turn in the
	// rollout of a change has not come.
	Keep bool
}

// PackState is how much of a pack is here.
type PackState int

// The states of a pack.
const (
	Absent PackState = iota
	Fetching
	Complete
	Failed // the last attempt failed; the reconciler tries again
)

// PackStatus is what is known of a pack on this host.
type PackStatus struct {
	State    PackState
	Reason   string // why the last attempt failed
	Attempts int    // failed ones in a row
	Bytes    int64  // what fetching it takes in all; 0: not known yet
}

// fetchAttempts is how many failed attempts a claim survives as "fetching";
// then it is "failed" and another node may take the slot.
const fetchAttempts = 3

// Plan decides. It is O(instances × nodes) at worst, ranks only slots that nobody
// holds, and with a Brief looks at those instances only that concern this node.
func Plan(in Input) Output {
	p := newPlanner(in)
	for i := range p.World.concerns(p.Self) {
		p.instance(&p.World.Instances[i])
	}
	p.orphans()
	p.finish()
	return p.out
}

// newPlanner has decided nothing yet.
func newPlanner(in Input) *planner {
	if in.TakeoverDelay == 0 {
		in.TakeoverDelay = DefaultTakeoverDelay
	}
	if in.Hysteresis == 0 {
		in.Hysteresis = DefaultHysteresis
	}
	if in.World.Ranks == nil {
		in.World.Ranks = &Ranks{}
	}
	p := &planner{
		Input: in,
		used:  in.World.usage(),
		out: Output{Timers: Timers{
			Empty: map[Slot]time.Duration{}, Failed: map[Slot]time.Duration{},
			Boots: map[Boot]time.Duration{}, Stray: map[string]time.Duration{},
			Known:     in.Timers.known(in.World, in.Self, in.VMs),
			Repairs:   recent(in.Timers.Repairs, in.Now),
			Preferred: map[Slot]time.Duration{}, Trials: map[Slot]time.Duration{},
			Tries: in.Timers.tries(in.World), Moves: in.Timers.moves(in.Now, in.Hysteresis),
		}},
		wanted: map[string]bool{}, keep: map[string]bool{},
	}
	p.remeasure()
	p.count()
	p.handing = p.handovers()
	p.self = in.World.nodeOf(in.Self)
	return p
}

type planner struct {
	Input
	self    *crdt.Node                  // nil until this node has published a register
	used    map[stmt.Key]crdt.Resources // by others' claims; it is only read, see takes
	mine    crdt.Resources              // what this node has promised, and what it owes
	parts   map[string]crdt.Resources   // see count
	sum     crdt.Resources              // of parts
	out     Output
	wanted  map[string]bool // packs to fetch, in p.out.Fetch
	keep    map[string]bool
	later   []string                     // packs to fetch after those of claims
	handing map[stmt.Key]Slot            // see handovers
	quotas  map[stmt.Key]map[Slot]excess // overQuota by owner
}

func (p *planner) wake(t time.Duration) {
	if p.out.Wake == 0 || t < p.out.Wake {
		p.out.Wake = t
	}
}

// first is since when key is in a state: from before, or now if that is news. It
// is kept in after.
func first[K comparable](before, after map[K]time.Duration, key K, now time.Duration) time.Duration {
	at, seen := before[key]
	if !seen {
		at = now
	}
	after[key] = at
	return at
}

// fetch asks for a pack unless it is complete; urgent ones come first.
func (p *planner) fetch(pack string, urgent bool) {
	p.keep[pack] = true
	if p.Packs[pack].State == Complete || p.wanted[pack] {
		return
	}
	if !urgent {
		p.later = append(p.later, pack)
		return
	}
	p.wanted[pack] = true
	p.out.Fetch = append(p.out.Fetch, pack)
}

// instance decides everything about one instance.
func (p *planner) instance(s *crdt.Spec) {
	all := s
	s = active(s)
	claims := p.World.Claims[s.ID]
	var own []crdt.Claim
	for _, c := range claims {
		if c.Node == p.Self {
			own = append(own, c)
		}
	}
	kept := false
	for _, c := range own {
		if p.own(s, claims, c, kept) {
			kept = true
		}
	}
	if !kept && p.self != nil && runnable(s) && p.World.minority(s) == "" {
		kept = p.claimEmpty(s, claims, len(own) > 0) || p.move(s, claims, len(own) > 0)
	} else {
		p.observeEmpty(s, claims)
	}
	p.hold(all, claims, kept)
}

// orphans drains the VMs and claims of instances that are no more.
func (p *planner) orphans() {
	live := p.World.lives()
	for _, c := range p.World.Own(p.Self) {
		if !live(c.Instance) {
			p.drain(c, "the instance was deleted")
		}
	}
	for _, id := range sortedKeys(p.VMs) {
		if !p.out.Timers.Known[id] && !p.World.deleted(id, p.VMs[id].Owner) {
			p.stray(id)
		}
	}
}

// Remember are the first Timers of a node that starts with the state and the VMs
// that an earlier run left.
func Remember(w World, self stmt.Key, vms map[string]VMStatus) Timers {
	return Timers{Known: Timers{}.known(w, self, vms)}
}

// Awake are the timers of a node that slept: how long slots are as they are counts from
// when it sees that anew.
func (t Timers) Awake() Timers {
	t.Empty, t.Failed, t.Preferred, t.Trials = nil, nil, nil, nil
	return t
}

// known are the VMs of instances that the world knows or did once.
func (t Timers) known(w World, self stmt.Key, vms map[string]VMStatus) map[string]bool {
	live, own := w.lives(), map[string]bool{}
	for _, c := range w.Own(self) {
		own[c.Instance] = true
	}
	out := map[string]bool{}
	for id := range vms {
		if instance, _, _ := strings.Cut(id, "-"); live(instance) || own[instance] || t.Known[id] {
			out[id] = true
		}
	}
	return out
}

// strayTime is how long a VM of an instance that was never known, and not deleted by
// its owner, is left as it is: this node has lost its state, and its peers may bring
// it back. A restart of the node begins it anew.
const strayTime = 24 * time.Hour

func (p *planner) stray(id string) {
	end := first(p.Timers.Stray, p.out.Timers.Stray, id, p.Now) + strayTime
	if p.Now >= end {
		delete(p.out.Timers.Stray, id)
		return
	}
	p.wake(end)
	vm := p.VMs[id]
	p.out.VMs = append(p.out.VMs, VM{
		ID: id, Run: vm.Phase != VMStopped, Incarnation: vm.Incarnation, Restart: vm.Restart, Keep: true,
	})
}

// drain gives a claim up: the VM is not wanted any more, and the claim is held
// as draining until the VM is gone.
func (p *planner) drain(c crdt.Claim, reason string) {
	if _, there := p.VMs[VMID(c.Instance, c.Slot)]; !there {
		return
	}
	c.Phase, c.Ready, c.Reason = crdt.ClaimDraining, false, reason
	p.out.Claims = append(p.out.Claims, c)
}

// finish orders the output and adds what has low urgency.
func (p *planner) finish() {
	o := &p.out
	for _, pack := range p.later {
		if !p.wanted[pack] {
			p.wanted[pack] = true
			o.Fetch = append(o.Fetch, pack)
		}
	}
	o.Keep = slices.Sorted(maps.Keys(p.keep))
	slices.SortFunc(o.Claims, func(a, b crdt.Claim) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Slot, b.Slot))
	})
	slices.SortFunc(o.Leases, func(a, b Lease) int { return cmp.Compare(a.Instance, b.Instance) })
	slices.SortFunc(o.VMs, func(a, b VM) int { return cmp.Compare(a.ID, b.ID) })
	for _, vm := range o.VMs {
		if _, stray := o.Timers.Stray[vm.ID]; !stray {
			o.Timers.Known[vm.ID] = true
		}
	}
}
