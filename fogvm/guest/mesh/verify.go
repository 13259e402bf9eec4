package mesh

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/guest"
)

// Bounds of a Verifier.
const (
	// MaxBytes is how much of statements it holds. An owner's 256 instances with a
	// thousand claims take about a third of it.
	MaxBytes = 4 << 20
	// maxPending is how many statements may wait for others; honest hosts tell them
	// in an order in which none does.
	maxPending = 128
	// maxTold is how many statements of a round it remembers: more than it holds.
	maxTold = 1 << 15
)

// Errors of [Verifier.Tell], beside those of crdt.State.Apply.
var (
	// ErrUnwanted: a statement that has nothing to do with the guest's owner.
	ErrUnwanted = errors.New("a statement that is none of this guest's affair")
	// ErrFull: the guest holds as much as it may.
	ErrFull = errors.New("the guest holds no more statements")
)

// Verifier knows from signed statements whom the guest may talk with. It is pure,
// and for one goroutine.
type Verifier struct {
	pin   Pin
	state *crdt.State
	bytes int  // at least what state holds
	full  bool // until the round ends
	most  int  // MaxBytes; tests have less

	telling, set map[guest.Name]told // of the round under way, and what there is after the last one
	gone         map[guest.Name]bool // in the round under way
	over, all    bool                // that was more than maxTold; the last was
	told         map[mark]bool       // claims of set that are held
	known        int                 // maxTold; tests have less
}

// told is a statement that the guest was told.
type told struct {
	id    stmt.ID // zero: it is none
	claim mark    // zero: it is another
}

// mark names a claim's statement: a node numbers what it says.
type mark struct {
	node       stmt.Key
	epoch, seq uint64
}

// NewVerifier knows of nobody.
func NewVerifier(pin Pin) *Verifier {
	v := &Verifier{pin: pin, state: newState(pin), most: MaxBytes, known: maxTold}
	v.Begin()
	return v
}

func newState(pin Pin) *crdt.State { return crdt.NewState(pin.network(), pin.Root, crdt.NewModel()) }

// Tell takes one statement. An error says why it changes nothing; it is no news
// when it is held already. raw must not change afterwards.
func (v *Verifier) Tell(raw []byte) error {
	st, err := stmt.Peek(raw, v.pin.network())
	v.note(raw, st)
	if err != nil {
		return err
	}
	if !crdt.Concerns(st, v.pin.Owner) {
		return fmt.Errorf("%w: a %s statement of %s", ErrUnwanted, st.Kind, st.Author)
	}
	if v.state.Holds(st.ID) {
		return nil
	}
	if v.full = v.full || v.bytes+len(raw) > v.most && !v.recount(len(raw)); v.full {
		return ErrFull
	}
	// Without a time: whether an invite was in time is what the nodes have judged
	// that hold the statement; the guest's clock is the host's.
	changed, err := v.state.Apply(raw, time.Time{})
	if changed {
		v.bytes += len(raw)
	}
	if v.state.Pending() > maxPending {
		v.rebuild()
	}
	return err
}

// Begin begins with a new source of news: what an earlier one told of a round that
// it did not end is no part of any.
func (v *Verifier) Begin() {
	v.telling, v.gone, v.over = map[guest.Name]told{}, map[guest.Name]bool{}, false
}

// note notes that raw, which is st or nothing, is told in this round.
func (v *Verifier) note(raw []byte, st *stmt.Statement) {
	if len(v.telling) >= v.known {
		v.over = true
		return
	}
	var t told
	if st != nil {
		t.id = st.ID
		if st.Kind == stmt.KindClaim {
			t.claim = mark{st.Author, st.Epoch, st.Seq}
		}
	}
	v.telling[guest.NameOf(raw)] = t
}

// Gone says that a statement that was told before is no part of what there is.
func (v *Verifier) Gone(n guest.Name) {
	if _, ok := v.set[n]; ok {
		v.gone[n] = true
	}
}

// recount finds out how much is really held, and whether there is room for more.
func (v *Verifier) recount(more int) bool {
	v.bytes = 0
	for _, raw := range v.state.Held() {
		v.bytes += len(raw)
	}
	return v.bytes+more <= v.most
}

// rebuild forgets what waits for others: what is held was verified when it came.
func (v *Verifier) rebuild() {
	fresh := newState(v.pin)
	for _, raw := range v.state.Held() {
		// It was applied before, in this order.
		_, _ = fresh.Apply(raw, time.Time{})
	}
	v.state = fresh
}

// End ends a round, of all that there is or, with since, of what has changed since
// the last one. Claims that are no part of it do not count any more, as they may be
// over, which nothing else would say.
func (v *Verifier) End(since bool) {
	if since {
		v.over = v.over || len(v.set)+len(v.telling) > v.known
		for n := range v.gone {
			delete(v.set, n)
		}
	} else {
		v.set = map[guest.Name]told{}
	}
	if !since || !v.over { // else there is no room, and all will be told
		maps.Copy(v.set, v.telling)
	}
	v.told = map[mark]bool{}
	for _, t := range v.set {
		if t.claim != (mark{}) && v.state.Holds(t.id) {
			v.told[t.claim] = true
		}
	}
	v.all, v.full = v.over, false
	v.Begin()
}

// Acknowledge is what the guest says of the last round: over what it was told, and
// what of that it does not hold.
func (v *Verifier) Acknowledge() (sum guest.Name, again []guest.Name, all bool) {
	for n, t := range v.set {
		if !v.state.Holds(t.id) {
			again = append(again, n)
		}
	}
	slices.SortFunc(again, guest.Name.Compare)
	if len(again) > guest.MaxAgain {
		return guest.Sum(v.set), nil, true
	}
	return guest.Sum(v.set), again, v.all
}

// Held is how many statements the Verifier holds.
func (v *Verifier) Held() int { return len(v.state.Held()) }

// Lasting are the held statements that must not be forgotten: all but claims.
func (v *Verifier) Lasting() [][]byte { return v.state.Lasting() }

// Parties are the guest's peers. None before the end of the first round.
func (v *Verifier) Parties() []policy.Party {
	return policy.OfReplica(v.believed(), v.pin.Owner, v.pin.Instance, v.pin.Slot, v.pin.Node)
}

// Own is what the guest's node claims for it; false: nothing.
func (v *Verifier) Own() (crdt.Claim, bool) {
	for _, c := range v.believed().Claims(v.pin.Instance) {
		if c.Node == v.pin.Node && c.Slot == v.pin.Slot && c.Owner == v.pin.Owner {
			return c, true
		}
	}
	return crdt.Claim{}, false
}

func (v *Verifier) believed() believed { return believed{v.state.View(), v.told} }

// believed is a View with those claims alone that the last round told.
type believed struct {
	*crdt.View
	told map[mark]bool
}

func (b believed) Claims(instance string) []crdt.Claim {
	var out []crdt.Claim
	for _, c := range b.View.Claims(instance) {
		if b.told[mark{c.Node, c.Epoch, c.Seq}] {
			out = append(out, c)
		}
	}
	return out
}
