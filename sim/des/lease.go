package des

import (
	"strconv"
	"time"

	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// leases is what a daemon knows of leases: as a voter and as a holder.
type leases struct {
	voter  *lease.Voter
	tenant *plan.Tenant
	polled uint64 // the state that the voter has seen
	ver    uint64 // raised when the tenant's status changes
}

// kept is what a voter has on disk.
type kept struct {
	memory *lease.Memory // nil: nothing
	ver    uint64        // of the last that was written
	next   uint64        // of the last that is being written
}

// Times and sizes of leases (fogvm/reconcile, fogvm).
const (
	leaseTimeout = 5 * time.Second
	pauseLimit   = 2 * time.Second // a keeper that has not paused its machine by then kills it
	leaseFrame   = 110             // a request
	voteFrame    = 20              // an answer
)

// keeperTakes is how long a machine's keeper takes to be told.
var keeperTakes = Range{time.Millisecond, 20 * time.Millisecond}

// vote begins a daemon's part in leases from what is on disk.
func (n *node) vote() {
	t := n.sim.times()
	memory := n.disk.votes.memory
	if n.sim.cfg.Mutant == VotesForgotten {
		memory = &lease.Memory{Boot: n.bootID()}
	}
	n.leases = leases{voter: lease.NewVoter(t, n.bootID(), n.bootTime(), memory), tenant: plan.NewTenant(t, n.key)}
	m := n.voter.Memory()
	n.disk.votes.memory = &m // before it answers anybody
}

func (s *Sim) times() lease.Times {
	t := lease.DefaultTimes
	if s.cfg.Mutant == NoMargin {
		t.Margin = 0
	}
	return t
}

// bootID names the machine's present boot.
func (n *node) bootID() string { return "boot-" + strconv.Itoa(int(n.boots)) }

// renew is one step of holding leases, and of seeing what to vote on.
func (n *node) renew() {
	if !n.sim.contracts {
		return
	}
	now := n.bootTime()
	if n.ready && n.polled != n.h.id {
		n.polled = n.h.id
		if plan.Register(n.view().view, n.key, now, n.voter) {
			n.keepVotes(nil)
		}
	}
	if n.tenant.Idle() {
		return
	}
	out := n.tenant.Step(now, n.fencedVMs(), func() uint64 { return n.rng.Uint64() >> 1 })
	n.ask(out.Asks)
	for _, e := range out.Tell {
		n.after(keeperTakes.draw(n.rng), evExtend, int64(e.Until), 0, e)
	}
	if out.Changed {
		n.leases.ver++
		n.plan()
	}
}

func (n *node) fencedVMs() map[string]plan.FencedVM {
	out := make(map[string]plan.FencedVM, len(n.vms))
	for id, v := range n.vms {
		out[id] = plan.FencedVM{Fenced: v.Fenced, HeldUntil: v.until, Stopped: v.status(n).Phase == plan.VMStopped}
	}
	return out
}

// extend reaches a machine's keeper: it may run until then.
func (n *node) extend(e plan.Extension) {
	n.tenant.Told(e)
	v := n.vms[e.VM]
	if v == nil || !v.run || !v.Fenced || e.Until <= v.until {
		return
	}
	if v.upAt != never && v.until != 0 && !n.executes(v) {
		n.sim.Seen["a paused machine went on"]++
	}
	v.until = e.Until
	if v.upAt == never {
		v.upAt = n.sim.now + n.sim.cfg.Boot.draw(n.rng)
		n.after(v.upAt-n.sim.now, evVM, 0, 0, nil)
	}
	n.after(max(0, n.clock.when(v.until)-n.sim.now), evVM, 0, 0, nil)
	n.plan()
}

// asked is a question under way, and vote its answer.
type asked struct {
	lease.Ask
	at time.Duration
}

type vote struct {
	*asked
	answer lease.Answer
}

// ask puts questions to voters, itself perhaps among them.
func (n *node) ask(list []lease.Ask) {
	for _, a := range list {
		q := &asked{a, n.sim.now}
		n.sim.stream(Leases, leaseFrame, event{kind: evAsk, node: n.sim.index[a.To], from: n.i, a: int64(a.Nonce), load: q})
	}
}

// judge answers a question. What it grants is on disk before it says so.
func (n *node) judge(e *event) {
	q := e.load.(*asked)
	answer := func(a lease.Answer) {
		n.sim.stream(Leases, voteFrame, event{kind: evVote, node: e.from, from: n.i, a: e.a, load: &vote{q, a}})
	}
	from, v := n.sim.nodes[e.from].key, n.view().view
	switch {
	case !v.IsMember(from, stmt.RoleNode):
		return
	case !n.ready:
		answer(lease.Answer{Reason: "its state is not synchronised"})
		return
	}
	r, known, refusal := plan.Ballot(v, n.key, from, plan.Question{
		Instance: q.Instance, Set: q.Set, Nonce: q.Nonce, Held: q.Held, Release: q.Release,
	})
	if refusal != "" {
		answer(lease.Answer{Reason: refusal})
		return
	}
	if n.sim.cfg.Mutant == TakeoverAtOnce {
		n.voter = impatient(n.sim.times(), n.bootID(), n.voter)
	}
	a, changed := n.voter.Ask(n.bootTime(), r, known)
	if !changed {
		answer(a)
		return
	}
	n.keepVotes(func() { answer(a) })
}

// impatient is a voter that thinks that all leases have ended.
func impatient(t lease.Times, boot string, v *lease.Voter) *lease.Voter {
	m := v.Memory()
	for i := range m.Votes {
		m.Votes[i].Until = 0
	}
	return lease.NewVoter(t, boot, 0, &m)
}

// voted takes a voter's answer.
func (n *node) voted(v *vote) {
	if n.sim.now-v.at > leaseTimeout {
		return
	}
	more, news := n.tenant.Answer(n.bootTime(), v.Ask, v.answer)
	n.ask(more)
	if news {
		n.renew()
	}
}

// record is what a voter writes, and what waits for that.
type record struct {
	lease.Memory
	ver  uint64
	then func()
}

// keepVotes writes what the voter must keep, and goes on when it is on disk.
func (n *node) keepVotes(then func()) {
	n.disk.votes.next++
	n.after(n.fsync(), evKept, 0, 0, &record{n.voter.Memory(), n.disk.votes.next, then})
}

func (n *node) keptVotes(r *record) {
	if n.fails() {
		return
	}
	if d := &n.disk.votes; r.ver > d.ver {
		d.memory, d.ver = &r.Memory, r.ver
	}
	if r.then != nil {
		r.then()
	}
}

// stream sends e on a stream: it arrives, if the way is there, when what got lost
// was sent again.
func (s *Sim) stream(class Class, size int, e event) {
	if e.node == e.from {
		e.at = s.now + time.Microsecond
		s.push(e)
		return
	}
	if !s.net.reaches(e.from, e.node) || !s.net.reaches(e.node, e.from) {
		return
	}
	e.at = s.now + s.streamed(class, size, e.from, e.node)
	s.push(e)
}
