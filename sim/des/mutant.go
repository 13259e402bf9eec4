package des

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// Mutant breaks something that an invariant is there to notice. A check that no
// mutant fails is none.
type Mutant string

// The mutants.
const (
	// NoMargin: leases end when they end, on every clock.
	NoMargin Mutant = "no-margin"
	// VotesForgotten: a voter that restarts has forgotten its promises, and does
	// not know that.
	VotesForgotten Mutant = "votes-forgotten"
	// TakeoverAtOnce: a voter does not wait for the end of a lease.
	TakeoverAtOnce Mutant = "takeover-at-once"
	// NoKeeper: nothing pauses a machine when its lease ends.
	NoKeeper Mutant = "no-keeper"
	// NoVoters: who sees too few voters runs on.
	NoVoters Mutant = "no-voters"
	// SurplusStays: a machine that nobody wants any more is left to run.
	SurplusStays Mutant = "surplus-stays"
	// NoResync: a node that slept goes on by what it knew.
	NoResync Mutant = "no-resync"
	// SignaturesUnchecked: a forged statement is believed.
	SignaturesUnchecked Mutant = "signatures-unchecked"
	// WakesAtOnce: a decision wants to be taken again now.
	WakesAtOnce Mutant = "wakes-at-once"
	// OverPromises: a node offers four times what it has.
	OverPromises Mutant = "over-promises"
	// TwoReplicas: a node takes a second replica of what it runs.
	TwoReplicas Mutant = "two-replicas"
	// NeverYields: a node keeps every slot that it once held.
	NeverYields Mutant = "never-yields"
	// TakesNothing: a node takes no slot over.
	TakesNothing Mutant = "takes-nothing"
	// DrainsAtOnce: a node that drains stops its machines before others have theirs.
	DrainsAtOnce Mutant = "drains-at-once"
	// NoPatience: slots are taken over at once.
	NoPatience Mutant = "no-patience"
	// NoBudget: a node does not remember what it took over.
	NoBudget Mutant = "no-budget"
	// RefusesClaims: what honest nodes say of their replicas is refused now and then.
	RefusesClaims Mutant = "refuses-claims"
	// StaleViews: a node decides by an older view of what it holds.
	StaleViews Mutant = "stale-views"
	// AckBeforeSync: an owner is told that something is safe that is not on disk.
	AckBeforeSync Mutant = "ack-before-sync"
	// SlowDetector: deaths are found late.
	SlowDetector Mutant = "slow-detector"
	// HastyDetector: one answer that is missing is a death.
	HastyDetector Mutant = "hasty-detector"
	// LossyFork: of two nodes with one state that part, one lacks a statement.
	LossyFork Mutant = "lossy-fork"
	// RunsWithoutPack: a pack counts as complete when its fetch begins.
	RunsWithoutPack Mutant = "runs-without-pack"
	// ForgetsParts: a fetch that loses a source begins anew.
	ForgetsParts Mutant = "forgets-parts"
	// NeverReunites: who was apart from others looks for nobody when that is over.
	NeverReunites Mutant = "never-reunites"
	// RefusesUnknown: a daemon of the earlier version does not take in what says more
	// than it knows.
	RefusesUnknown Mutant = "refuses-unknown"
	// StripsUnknown: an owner's tool of the earlier version leaves out what it does not
	// know when it changes an instance.
	StripsUnknown Mutant = "strips-unknown"
	// AsksNobody: a node that has begun does not ask others for what it missed.
	AsksNobody Mutant = "asks-nobody"
	// HearsLate: a node takes a tenth of a second to take in what it hears.
	HearsLate Mutant = "hears-late"
	// TellsTwice: a node tells each of its statements twice, and all pass it on as often.
	TellsTwice Mutant = "tells-twice"
	// OwnDice: draws go on from one run to the next.
	OwnDice Mutant = "own-dice"
	// IntoThePast: something is to happen before now.
	IntoThePast Mutant = "into-the-past"
)

// thrown counts the draws of OwnDice, of all runs.
var thrown atomic.Uint64

// broken is what a node decides when the mutant is one of decisions.
func (n *node) broken(in plan.Input, out plan.Output) plan.Output {
	held := n.view().view.ClaimsBy(n.key)
	has := func(list []crdt.Claim, c crdt.Claim) bool {
		return slices.ContainsFunc(list, func(o crdt.Claim) bool { return o.Instance == c.Instance && o.Slot == c.Slot })
	}
	switch n.sim.cfg.Mutant {
	case WakesAtOnce:
		out.Wake = in.Now
	case TwoReplicas:
		for _, c := range out.Claims {
			if c.Slot == 0 {
				c.Slot, c.Generation = 1, c.Generation+1
				out.Claims = append(out.Claims, c)
				break
			}
		}
	case NeverYields:
		for _, c := range held {
			if _, wanted := n.view().view.Instance(c.Instance); wanted && !has(out.Claims, c) {
				out.Claims = append(out.Claims, c)
			}
		}
	case TakesNothing:
		out.Claims = slices.DeleteFunc(out.Claims, func(c crdt.Claim) bool { return !has(held, c) })
	case DrainsAtOnce:
		for i := range out.VMs {
			out.VMs[i].Run = out.VMs[i].Run && !n.draining
		}
	case NoBudget:
		out.Timers.Repairs = nil
	}
	return out
}

// liveConfig is that of detectors.
func (s *Sim) liveConfig() live.Config {
	c := s.cfg.Live
	switch s.cfg.Mutant {
	case SlowDetector:
		c.DeadRounds = 12
	case HastyDetector:
		c.DeadRounds, c.DoubtFactor, c.Timeout, c.Indirect = 1, 1, 100*time.Millisecond, 90*time.Millisecond
	}
	return c
}

// takeoverDelay is how long a slot is empty before it is taken over; 0: as in
// production.
func (s *Sim) takeoverDelay() time.Duration {
	if s.cfg.Mutant == NoPatience {
		return time.Nanosecond
	}
	return s.cfg.TakeoverDelay
}

// errMutant refuses what is in order.
var errMutant = errors.New("refused by a mutant")

// spoiltMerge is an outcome with an honest claim in it refused.
func (s *Sim) spoiltMerge(b batch, out outcome) outcome {
	if s.cfg.Mutant != RefusesClaims {
		return out
	}
	out.errs = slices.Clone(out.errs)
	for i, v := range b.vs {
		if v.Statement().Kind == stmt.KindClaim && v.Statement().ID[0]%16 == 0 {
			out.errs[i] = errMutant
		}
	}
	return out
}
