package lease

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Times of leases. All nodes of a network use the same.
type Times struct {
	Lease  time.Duration // from the request until another may hold it
	Margin time.Duration // before its end and after it
}

// DefaultTimes are what a network uses: short enough for a takeover within a
// minute, long enough for a voter that restarts.
var DefaultTimes = Times{Lease: 30 * time.Second, Margin: 5 * time.Second}

// guard is how long a voter's promise lasts.
func (t Times) guard() time.Duration { return t.Lease + t.Margin }

// SetID names the voters of an instance in one term.
type SetID [16]byte

// UnmarshalCBOR accepts a byte string of exactly 16 bytes.
func (s *SetID) UnmarshalCBOR(b []byte) error {
	if len(b) != 17 || b[0] != 0x50 {
		return stmt.ErrEncoding
	}
	copy(s[:], b[1:])
	return nil
}

// SetOf is the first 16 bytes of SHA-256("formation/voters/1" ‖ 00 ‖ term as
// uint64 big endian ‖ the keys in ascending order).
func SetOf(term uint64, voters []stmt.Key) SetID {
	keys := slices.Clone(voters)
	slices.SortFunc(keys, stmt.Key.Compare)
	h := sha256.New()
	h.Write([]byte("formation/voters/1\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, term))
	for _, k := range keys {
		h.Write(k[:])
	}
	return SetID(h.Sum(nil)[:16])
}

// Request is what a holder asks of a voter.
type Request struct {
	Instance string
	Set      SetID
	Term     uint64 // of Set; both are the spec's as the voter knows it
	Holder   stmt.Key
	// Generation is that of the holder's claim, as the voter knows it.
	Generation uint64
	// Nonce tells one request of a holder from another.
	Nonce uint64
	// Held: when the holder asked it held a lease, of this set or of the one before.
	Held bool
	// Release takes the request of that nonce back.
	Release bool
}

// Answer of a voter.
type Answer struct {
	Granted bool
	Busy    bool   // not now: another holder has the vote
	Later   bool   // a later claim on the slot is known, and nobody has the vote
	Reason  string // why not, for people
}

func refused(reason string) Answer { return Answer{Reason: reason} }
