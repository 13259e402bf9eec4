package crdt

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// Anti-entropy: two replicas compare what they hold and exchange what either
// lacks. docs/wire.md specifies the protocol. A session is a pure conversation
// over a byte stream; it stops anywhere without harm, because whatever arrived
// is held and the next session starts from there.

// Bounds of one session.
const (
	aeProto        = "ae/1"
	maxAEFrame     = 64 << 10
	maxAEBits      = 10      // of the first level: 1024 buckets of 8 bytes
	maxAESub       = 1 << 17 // buckets of the second level: 1 MiB of digests
	maxSubBits     = 17      // what that takes below one bucket
	maxAEEntries   = 1 << 15 // entries, wants and gives of one session
	maxAESnapshot  = 1 << 20 // statements of a snapshot
	aeBucketTarget = 4       // entries per bucket of the second level that are aimed at
	aeBatch        = 48 << 10
	// aeBehind is how many times more a peer must hold for all of it to be asked
	// for instead of the difference.
	aeBehind = 16
)

// errAEProtocol is wrapped by every error that is the peer's fault.
var errAEProtocol = errors.New("crdt: anti-entropy: peer broke the protocol")

// aeFrame is every message of the protocol; each step uses its own fields.
type aeFrame struct {
	Count    int       `cbor:"n,omitempty"` // 1: how many entries the sender holds
	Digest   []byte    `cbor:"h,omitempty"` // 1: digest of all of them
	Snapshot bool      `cbor:"s,omitempty"` // 2: the initiator asks for everything
	Bits     int       `cbor:"k,omitempty"` // 2, 4: number of leading subject bits, and of further ones
	Buckets  []byte    `cbor:"b,omitempty"` // 2, 4: 8 bytes of digest per bucket
	Differ   []byte    `cbor:"d,omitempty"` // 3, 5: bitmap of buckets that differ
	Entries  []entry   `cbor:"e,omitempty"` // 5: the responder's entries in them
	Cut      bool      `cbor:"c,omitempty"` // 5, last frame: entries after the last subject are left out
	Raws     [][]byte  `cbor:"r,omitempty"` // 6, 7: statements
	Want     []shortID `cbor:"w,omitempty"` // 6: what the initiator asks for
	More     bool      `cbor:"m,omitempty"` // 4 to 7: further frames of this step follow
}

// aeSession is one side of a conversation.
type aeSession struct {
	rw  io.ReadWriter
	idx *index
	// apply merges statements of the peer; an error ends the session.
	apply func(raws [][]byte) error
	// touch is called before every frame with how many bytes have moved so far, to
	// set deadlines.
	touch func(moved int)

	moved          int // bytes, both ways
	sent, received int // statements
	news           int // of those received, and of those that waited for them
}

func (s *aeSession) send(f aeFrame) error {
	s.touch(s.moved)
	b, err := stmt.Marshal(f)
	if err != nil {
		return err
	}
	if len(b) > maxAEFrame {
		return fmt.Errorf("anti-entropy frame of %d bytes", len(b))
	}
	_, err = s.rw.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	s.moved += len(b)
	return err
}

func (s *aeSession) receive() (aeFrame, error) {
	s.touch(s.moved)
	var h [4]byte
	if _, err := io.ReadFull(s.rw, h[:]); err != nil {
		return aeFrame{}, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n == 0 || n > maxAEFrame {
		return aeFrame{}, fmt.Errorf("%w: frame of %d bytes", errAEProtocol, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.rw, b); err != nil {
		return aeFrame{}, err
	}
	s.moved += len(b)
	return decodeAEFrame(b)
}

func decodeAEFrame(b []byte) (aeFrame, error) {
	var f aeFrame
	if len(b) == 0 || b[0]>>5 != 5 {
		return f, fmt.Errorf("%w: frame is no map", errAEProtocol)
	}
	if err := stmt.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("%w: %w", errAEProtocol, err)
	}
	return f, nil
}

// initiate runs the side that opened the stream. again says that a bound was
// met and another session would find more.
func (s *aeSession) initiate() (again bool, err error) {
	mine := s.idx.all()
	if err := s.send(aeFrame{Count: len(s.idx.items), Digest: mine[:]}); err != nil {
		return false, err
	}
	theirs, err := s.receive()
	if err != nil || string(theirs.Digest) == string(mine[:]) {
		return false, err
	}
	if theirs.Count/aeBehind >= len(s.idx.items) && theirs.Count >= aeBehind {
		return s.takeSnapshot()
	}
	l := levels{k: firstBits(max(len(s.idx.items), theirs.Count))}
	if err := s.sendBuckets(max(len(s.idx.items), theirs.Count), &l); err != nil {
		return false, err
	}
	entries, cut, err := s.receiveEntries(&l)
	if err != nil {
		return false, err
	}
	give, want, come, over := s.compare(&l, entries, cut)
	if err := s.sendRaws(give, want); err != nil {
		return false, err
	}
	if err := s.receiveRaws(come+1, nil, s.apply); err != nil {
		return false, err
	}
	return cut || over, nil
}

// respond runs the other side.
func (s *aeSession) respond() error {
	theirs, err := s.receive()
	if err != nil {
		return err
	}
	mine := s.idx.all()
	if err := s.send(aeFrame{Count: len(s.idx.items), Digest: mine[:]}); err != nil {
		return err
	}
	if string(theirs.Digest) == string(mine[:]) {
		return nil
	}
	f, err := s.receive()
	if err != nil {
		return err
	}
	if f.Snapshot {
		return s.giveSnapshot()
	}
	l, err := s.receiveBuckets(f)
	if err != nil {
		return err
	}
	if err := s.sendEntries(l); err != nil {
		return err
	}
	var want []shortID
	if err := s.receiveRaws(3*maxAEEntries, &want, s.apply); err != nil {
		return err
	}
	var give []indexed
	for _, id := range want {
		if i, ok := s.idx.byID[id]; ok {
			give = append(give, s.idx.items[i])
		}
	}
	return s.sendRaws(give, nil)
}

// takeSnapshot asks for everything: to name what is missing would cost more. What
// has come when a session breaks is held, and the next one compares.
func (s *aeSession) takeSnapshot() (again bool, err error) {
	if err := s.send(aeFrame{Snapshot: true}); err != nil {
		return false, err
	}
	got := map[string]bool{}
	for _, it := range s.idx.items { // few: see aeBehind
		for _, raw := range it.raws {
			got[string(raw)] = false
		}
	}
	err = s.receiveRaws(maxAESnapshot, nil, func(raws [][]byte) error {
		for _, raw := range raws {
			if _, mine := got[string(raw)]; mine {
				got[string(raw)] = true
			}
		}
		return s.apply(raws)
	})
	if err != nil {
		return false, err
	}
	give := slices.DeleteFunc(slices.Clone(s.idx.items), func(it indexed) bool {
		return !slices.ContainsFunc(it.raws, func(raw []byte) bool { return !got[string(raw)] })
	})
	return false, s.sendRaws(give[:min(len(give), maxAEEntries)], nil)
}

func (s *aeSession) giveSnapshot() error {
	if err := s.sendRaws(slices.Clone(s.idx.items), nil); err != nil {
		return err
	}
	return s.receiveRaws(3*maxAEEntries, nil, s.apply)
}

// sendRaws sends statements in an order in which they can be applied, then the
// wanted IDs, and ends the step.
func (s *aeSession) sendRaws(items []indexed, want []shortID) error {
	sortForSending(items)
	var f aeFrame
	size := 0
	flush := func() error {
		f.More = true
		err := s.send(f)
		f, size = aeFrame{}, 0
		return err
	}
	for _, it := range items {
		for _, raw := range it.raws {
			if size+len(raw)+4 > aeBatch {
				if err := flush(); err != nil {
					return err
				}
			}
			f.Raws = append(f.Raws, raw)
			size += len(raw) + 4
			s.sent++
		}
	}
	if len(f.Raws) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	const perFrame = 3000 // of 17 bytes each
	for len(want) > perFrame {
		f.Want = want[:perFrame]
		if err := flush(); err != nil {
			return err
		}
		want = want[perFrame:]
	}
	f.Want = want
	return s.send(f)
}

// receiveRaws applies statements until the step ends. want collects the IDs the
// peer asks for; nil when it may not ask.
func (s *aeSession) receiveRaws(limit int, want *[]shortID, apply func(raws [][]byte) error) error {
	for {
		f, err := s.receive()
		if err != nil {
			return err
		}
		s.received += len(f.Raws)
		if s.received > limit || (f.More && len(f.Raws)+len(f.Want) == 0) {
			return fmt.Errorf("%w: too many frames", errAEProtocol)
		}
		if want == nil && len(f.Want) > 0 {
			return fmt.Errorf("%w: it asks where it may not", errAEProtocol)
		}
		if len(f.Raws) > 0 {
			if err := apply(f.Raws); err != nil {
				return err
			}
		}
		if want != nil {
			*want = append(*want, f.Want...)
			if len(*want) > maxAEEntries {
				return fmt.Errorf("%w: too many wants", errAEProtocol)
			}
		}
		if !f.More {
			return nil
		}
	}
}

// byRank orders raw statements of mixed kinds roughly as they can be applied.
func byRank(a, b stmt.Kind) int { return cmp.Compare(kindRank(a), kindRank(b)) }

func kindRank(k stmt.Kind) int {
	switch k {
	case stmt.KindMember:
		return rankMember
	case stmt.KindBase:
		return rankBase
	case stmt.KindOwner:
		return rankOwner
	case stmt.KindSpec:
		return rankSpec
	case stmt.KindSecret:
		return rankSecret
	case stmt.KindNode:
		return rankNode
	}
	return rankClaim
}
