package plan

import (
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/stmt"
)

// Question is what a holder says when it asks a voter for a lease. Who it is, the
// connection says; which claim it has, the voter's own state.
type Question struct {
	Instance      string
	Set           lease.SetID
	Nonce         uint64
	Held, Release bool
}

// votes says whether node votes on the lease of s.
func votes(s *crdt.Spec, node stmt.Key) bool {
	return s.Partition == crdt.PartitionFence && slices.Contains(s.Voters, node)
}

// Ballot judges a question by the state that the voter self holds: what to ask of
// its lease.Voter, with the highest generation of the claims that count. Empty
// refusal: it may be asked.
func Ballot(v *crdt.View, self, from stmt.Key, q Question) (r lease.Request, known uint64, refusal string) {
	s, ok := v.Instance(q.Instance)
	if !ok || !v.OwnerAllowed(s.Owner) || !votes(&s, self) || q.Set != lease.SetOf(s.Term, s.Voters) {
		return r, 0, "it does not vote on this"
	}
	generation, claims := uint64(0), false
	for _, c := range v.Claims(q.Instance) {
		if c.Slot != 0 || c.Phase == crdt.ClaimFailed {
			continue
		}
		known = max(known, c.Generation)
		if c.Node == from {
			generation, claims = c.Generation, true
		}
	}
	if !q.Release && (!claims || !v.MayRun(&s, from)) {
		return r, 0, "it knows of no claim that counts"
	}
	return lease.Request{
		Instance: q.Instance, Set: q.Set, Term: s.Term, Holder: from, Generation: generation,
		Nonce: q.Nonce, Held: q.Held, Release: q.Release,
	}, known, ""
}

// Register shows a voter what it votes on by the view that its node holds, so that
// the wait of new voters counts from when they were seen. It reports whether there
// is something new to keep.
func Register(v *crdt.View, self stmt.Key, now time.Duration, voter *lease.Voter) (changed bool) {
	for _, s := range v.Instances() {
		if votes(&s, self) {
			changed = voter.See(now, s.ID, lease.SetOf(s.Term, s.Voters), s.Term) || changed
		}
	}
	for _, id := range voter.Instances() {
		if _, lives := v.Instance(id); !lives {
			changed = voter.Forget(id) || changed
		}
	}
	return changed
}
