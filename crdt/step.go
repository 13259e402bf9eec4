package crdt

import (
	"crypto/ed25519"
	"fmt"
	"io"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// What a caller needs that drives a State by itself, one step at a time, as the
// simulator does. A Replica does the same against disk, clock and network.

// ApplyVerified is [State.Apply] for a statement whose signature was checked
// already, be it for another State.
func (s *State) ApplyVerified(v stmt.Verified, now time.Time) (changed bool, err error) {
	st := v.Statement()
	if st == nil || st.Network != s.network {
		return false, fmt.Errorf("%w: no statement of this network", stmt.ErrNetwork)
	}
	return s.applyNews(st, now)
}

// Transient says whether an error of Apply only tells of a difference of
// knowledge: a gossip message with such a statement is in order.
func Transient(err error) bool { return transient(err) }

// Held returns every raw statement that s holds, in an order in which they can
// be applied. The byte slices are shared; do not modify them.
func (s *State) Held() [][]byte { return s.index().statements() }

// Fingerprint is equal for two States of one network exactly when they hold the
// same statements, hash collisions aside. What is set aside does not count.
func (s *State) Fingerprint() stmt.ID { return s.ids.sum }

// Converse holds one anti-entropy session over rw, as initiator or as responder,
// from what s holds now; s itself does not change. got is called with what the
// peer sends. again says that another session would bring more. Reads of rw block
// until the peer has written.
func (s *State) Converse(rw io.ReadWriter, initiator bool, got func(raws [][]byte) error) (again bool, err error) {
	c := &aeSession{rw: rw, idx: s.index(), apply: got, touch: func(int) {}}
	if initiator {
		return c.initiate()
	}
	return false, c.respond()
}

// NewAuthorFrom is [NewAuthor] with the randomness, for its device and actor,
// handed in. Whoever draws the same twice for one owner equivocates.
func NewAuthorFrom(key ed25519.PrivateKey, network stmt.NetworkID, raws [][]byte, random io.Reader) (*Author, error) {
	return newAuthor(key, stmt.KeyOf(key), network, raws, random)
}

// Holds says whether s holds the statement.
func (s *State) Holds(id stmt.ID) bool {
	return s.ids.has(id)
}
