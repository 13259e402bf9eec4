package des

import (
	"fmt"
	"time"
)

// Invariant names something that must be true.
type Invariant string

// What is held at every event, and what a caller has held at the end.
const (
	Engine        Invariant = "engine"                    // the simulation itself is sound
	PlanPure      Invariant = "plan-is-a-function"        // equal input, equal decision, and none for the past
	PromisesFit   Invariant = "promises-fit"              // nobody promises more than it has
	OneReplica    Invariant = "one-replica-a-node"        // two replicas of an instance never share a node
	OneKeeper     Invariant = "one-keeper-by-equal-views" // by equal views no two nodes keep one slot
	FencedOnce    Invariant = "fenced-runs-once"          // a fenced instance runs once at most, at every moment
	Believed      Invariant = "honest-is-believed"        // what an honest node says is refused by none
	Refused       Invariant = "damaged-is-refused"        // what the network damaged or a liar forged is refused by all
	Resynced      Invariant = "asks-after-sleep"          // who slept decides nothing by what it knew before
	SameStatement Invariant = "state-is-its-statements"   // a state is what its statements say
	ViewsEqual    Invariant = "views-equal"               // who holds the same sees the same
	UnknownKept   Invariant = "unknown-kept"              // what a later version says more is held by all
	PackBeforeRun Invariant = "pack-before-run"           // nothing boots from a pack that never came to its node
	Connected     Invariant = "connected-graph"           // while nothing is split, those who are up are one graph
	FetchedOnce   Invariant = "fetched-once"              // of a pack no byte is fetched twice
	AckedKept     Invariant = "acknowledged-kept"         // nothing is lost that an owner was told is safe
)

// Broken is an invariant that did not hold.
type Broken struct {
	Of   Invariant     `json:"invariant"`
	At   time.Duration `json:"at"` // virtual time, nanoseconds
	What string        `json:"what"`
}

func (b Broken) String() string { return fmt.Sprintf("%v: %s: %s", b.At, b.Of, b.What) }

// maxBroken is how many are kept of a run: the first ones tell.
const maxBroken = 100

// broke notes that an invariant does not hold.
func (s *Sim) broke(of Invariant, format string, args ...any) {
	if len(s.Bad) < maxBroken {
		s.Bad = append(s.Bad, Broken{of, s.now, fmt.Sprintf(format, args...)})
	}
}

// violate notes that the simulation itself is not sound.
func (s *Sim) violate(format string, args ...any) { s.broke(Engine, format, args...) }
