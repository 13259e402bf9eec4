package lease

import (
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Vote is what a voter promised about one instance.
type Vote struct {
	Instance string
	Set      SetID
	Term     uint64
	Holder   stmt.Key // zero: nobody yet, or it gave the lease back
	Nonce    uint64   // of the last request that was granted
	// Until is when somebody else may have the vote. Before Wait nobody has it but
	// who holds a lease already: promises of others, or forgotten ones, may count.
	Until, Wait time.Duration
}

// Memory is what a voter must keep: it is on disk before an answer that
// changed it is given.
type Memory struct {
	Boot  string        // the boot whose clock the times are of
	Fresh time.Duration // until when the voter may have forgotten promises
	Votes []Vote        // by instance
}

// Voter grants leases. It is not safe for concurrent use.
type Voter struct {
	times Times
	boot  string
	fresh time.Duration
	votes map[string]*Vote
}

// NewVoter continues from what was kept; nil: nothing was kept, or it cannot be
// read. boot names the present boot. A clock of another boot says nothing: then
// each promise counts anew, and the first time an instance is seen is waited for.
func NewVoter(t Times, boot string, now time.Duration, m *Memory) *Voter {
	v := &Voter{times: t, boot: boot, fresh: now + t.guard(), votes: map[string]*Vote{}}
	if m == nil {
		return v
	}
	for _, kept := range m.Votes {
		if m.Boot != boot {
			kept.Until = now + t.guard()
			if kept.Wait != 0 {
				kept.Wait = now + t.guard()
			}
		}
		v.votes[kept.Instance] = &kept
	}
	if m.Boot == boot {
		v.fresh = m.Fresh
	}
	return v
}

// Memory is what to keep.
func (v *Voter) Memory() Memory {
	m := Memory{Boot: v.boot, Fresh: v.fresh, Votes: make([]Vote, 0, len(v.votes))}
	for _, o := range v.votes {
		m.Votes = append(m.Votes, *o)
	}
	slices.SortFunc(m.Votes, func(a, b Vote) int { return strings.Compare(a.Instance, b.Instance) })
	return m
}

// See notes that this node votes on an instance, by the spec as it is now: from
// the first sight of a set its wait is counted. It reports whether there is
// something new to keep.
func (v *Voter) See(now time.Duration, instance string, set SetID, term uint64) (changed bool) {
	o := v.votes[instance]
	switch {
	case o == nil:
		o = &Vote{Instance: instance, Set: set, Term: term, Wait: v.fresh}
		if term > 0 {
			// Voters of an earlier term may have granted a lease a moment ago.
			o.Wait = now + v.times.guard()
		}
		v.votes[instance] = o
		return true
	case term < o.Term || set == o.Set:
		return false
	}
	*o = Vote{Instance: instance, Set: set, Term: term, Wait: now + v.times.guard()}
	return true
}

// Forget drops an instance that was deleted. Its ID never comes back.
func (v *Voter) Forget(instance string) (changed bool) {
	_, had := v.votes[instance]
	delete(v.votes, instance)
	return had
}

// Instances are those that the voter remembers, sorted.
func (v *Voter) Instances() []string {
	out := make([]string, 0, len(v.votes))
	for id := range v.votes {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Ask judges a request of a holder whose claim counts; known is the highest
// generation of the claims that count. It reports whether there is something new
// to keep before the answer is given.
func (v *Voter) Ask(now time.Duration, r Request, known uint64) (a Answer, changed bool) {
	changed = v.See(now, r.Instance, r.Set, r.Term)
	o := v.votes[r.Instance]
	if r.Set != o.Set {
		return refused("the voters were replaced"), changed
	}
	mine := o.Holder == r.Holder && !o.Holder.IsZero()
	if r.Release {
		if !mine || o.Nonce != r.Nonce {
			return refused("nothing is held by that request"), changed
		}
		o.Holder, o.Until = stmt.Key{}, now
		return Answer{Granted: true}, true
	}
	running := now < o.Until
	switch {
	case running && !mine:
		return Answer{Busy: true, Reason: "another node may still hold the lease"}, changed
	case now < o.Wait && !r.Held:
		return refused("a lease that this voter does not know of may still count"), changed
	case r.Generation < known && !(mine && running):
		return Answer{Later: true, Reason: "a later claim on the slot is known"}, changed
	}
	o.Holder, o.Nonce, o.Until = r.Holder, r.Nonce, now+v.times.guard()
	return Answer{Granted: true}, true
}
