package plan

import (
	"time"

	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/stmt"
)

// Tenant holds and renews the leases of one node: it asks for those that Output
// wants, tells the keepers of their machines until when these may run, and gives
// a lease back once its machine is certain not to run. It is pure but for what it
// remembers, and not safe for concurrent use.
type Tenant struct {
	times lease.Times
	self  stmt.Key
	want  map[string]Lease
	held  map[string]*tenancy // by instance
	lapse uint64              // failed renewals of leases that are not held any more
}

// tenancy is a lease that the node holds or asks for.
type tenancy struct {
	vm     string // ID
	holder *lease.Holder
	told   int // how often the VM's keeper is being told
	shown  LeaseStatus
}

// FencedVM is what a Tenant needs to know of a machine on its host.
type FencedVM struct {
	// Fenced: it runs only until HeldUntil, as its keeper was told last.
	Fenced    bool
	HeldUntil time.Duration
	// Stopped: it does not run, and will not without being told to.
	Stopped bool
	// Lost: nobody keeps it. It may run where nobody sees it until HeldUntil.
	Lost bool
}

// Extension is what the keeper of a VM is to be told: it may run until then.
type Extension struct {
	Instance, VM string
	Until        time.Duration
}

// TenantStep is what to do now. Lists have a fixed order.
type TenantStep struct {
	Asks    []lease.Ask
	Tell    []Extension // each is followed by Told
	Changed bool        // Status has
}

// NewTenant holds nothing yet.
func NewTenant(t lease.Times, self stmt.Key) *Tenant {
	return &Tenant{times: t, self: self, want: map[string]Lease{}, held: map[string]*tenancy{}}
}

// Want replaces the leases to ask for and to renew. A lease that is not wanted any
// more is renewed until its VM has stopped, and then given back.
func (t *Tenant) Want(leases []Lease) {
	clear(t.want)
	for _, w := range leases {
		t.want[w.Instance] = w
	}
}

// Idle says whether there is nothing that Step would do.
func (t *Tenant) Idle() bool { return len(t.want) == 0 && len(t.held) == 0 }

// Status is how the leases do that are asked for, by instance.
func (t *Tenant) Status(now time.Duration) map[string]LeaseStatus {
	out := make(map[string]LeaseStatus, len(t.held))
	for id, h := range t.held {
		out[id] = h.status(now)
	}
	return out
}

// Failed counts the renewals that did not find a majority.
func (t *Tenant) Failed() uint64 {
	n := t.lapse
	for _, h := range t.held { // any order: a sum
		n += h.holder.Failed()
	}
	return n
}

func (h *tenancy) status(now time.Duration) LeaseStatus {
	why := h.holder.Missing(now)
	return LeaseStatus{Held: why == "", Outdated: why != "" && h.holder.Outdated(), Reason: why}
}

// Step begins and ends leases as they are wanted, asks what is due, and has the
// VMs' keepers told. vms are those of this host by ID; nonce gives a number drawn
// at random. Send a step four times a second, and after each Want.
func (t *Tenant) Step(now time.Duration, vms map[string]FencedVM, nonce func() uint64) TenantStep {
	var out TenantStep
	for _, id := range sortedKeys(t.want) {
		out.Changed = t.begin(t.want[id], vms, nonce) || out.Changed
	}
	for _, id := range sortedKeys(t.held) {
		h := t.held[id]
		vm, there := vms[h.vm]
		if _, wanted := t.want[id]; !wanted && h.over(vm, there) {
			if !vm.Lost {
				out.Asks = append(out.Asks, h.holder.Release()...)
			}
			t.lapse += h.holder.Failed()
			delete(t.held, id)
			out.Changed = true
			continue
		}
		out.Asks = append(out.Asks, h.holder.Tick(now)...)
		if until := h.holder.Until(); h.told == 0 && there && vm.Fenced && vm.HeldUntil < until {
			h.told++
			out.Tell = append(out.Tell, Extension{Instance: id, VM: h.vm, Until: until})
		}
		if s := h.status(now); s != h.shown {
			h.shown, out.Changed = s, true
		}
	}
	return out
}

// begin asks for a lease, or asks by what has changed of it.
func (t *Tenant) begin(w Lease, vms map[string]FencedVM, nonce func() uint64) bool {
	id, set := VMID(w.Instance, w.Slot), lease.SetOf(w.Term, w.Voters)
	until, told := vms[id].HeldUntil, 0
	if h := t.held[w.Instance]; h != nil {
		if h.holder.Set() == set {
			return false
		}
		until, told = max(until, h.holder.Until()), h.told
		t.lapse += h.holder.Failed()
	}
	base := lease.Request{Instance: w.Instance, Set: set, Term: w.Term, Holder: t.self}
	t.held[w.Instance] = &tenancy{vm: id, holder: lease.NewHolder(t.times, base, w.Voters, nonce(), until), told: told}
	return true
}

// over says whether a lease that is not wanted any more has an end: when it is
// certain that its VM does not run, and not while its keeper may yet be told.
func (h *tenancy) over(vm FencedVM, there bool) bool {
	return h.told == 0 && (!there || vm.Stopped || vm.Lost)
}

// Answer takes a voter's answer to a request. news: a lease goes further than
// before, so a step is due.
func (t *Tenant) Answer(now time.Duration, to lease.Ask, a lease.Answer) (asks []lease.Ask, news bool) {
	h := t.held[to.Instance]
	if h == nil || to.Release || h.holder.Set() != to.Set {
		return nil, false
	}
	before := h.holder.Until()
	asks = h.holder.Answer(now, to.To, to.Nonce, a)
	return asks, h.holder.Until() != before
}

// Told says that an Extension has reached the VM's keeper, or failed to.
func (t *Tenant) Told(e Extension) {
	if h := t.held[e.Instance]; h != nil {
		h.told = max(h.told-1, 0)
	}
}
