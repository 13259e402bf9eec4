package des

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
)
