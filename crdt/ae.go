package crdt

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
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
	maxAEBits      = 12      // 4096 buckets of 8 bytes: 32 KiB
	maxAEEntries   = 1 << 16 // entries, wants and gives of one session
	aeBucketTarget = 8       // entries per bucket that are aimed at
	aeBatch        = 48 << 10
)

// errAEProtocol is wrapped by every error that is the peer's fault.
var errAEProtocol = errors.New("crdt: anti-entropy: peer broke the protocol")

// aeFrame is every message of the protocol; each step uses its own fields.
type aeFrame struct {
	Count   int       `cbor:"n,omitempty"` // 1: how many entries the sender holds
	Digest  []byte    `cbor:"h,omitempty"` // 1: digest of all of them
	Bits    int       `cbor:"k,omitempty"` // 2: number of leading subject bits
	Buckets []byte    `cbor:"b,omitempty"` // 2: 8 bytes of digest per bucket
	Differ  []byte    `cbor:"d,omitempty"` // 3: bitmap of buckets that differ
	Entries []entry   `cbor:"e,omitempty"` // 3: the responder's entries in them
	Cut     bool      `cbor:"c,omitempty"` // 3, last frame: entries after the last subject are left out
	Raws    [][]byte  `cbor:"r,omitempty"` // 4, 5: statements
	Want    []shortID `cbor:"w,omitempty"` // 4: what the initiator asks for
	More    bool      `cbor:"m,omitempty"` // 3, 4, 5: further frames of this step follow
}

// aeSession is one side of a conversation.
type aeSession struct {
	rw  io.ReadWriter
	idx *index
	// apply merges statements of the peer; an error ends the session.
	apply func(raws [][]byte) error
	// touch is called before every frame, to move deadlines.
	touch func()

	sent, received int // statements
	news           int // of those received, and of those that waited for them
}

func (s *aeSession) send(f aeFrame) error {
	s.touch()
	b, err := stmt.Marshal(f)
	if err != nil {
		return err
	}
	if len(b) > maxAEFrame {
		return fmt.Errorf("anti-entropy frame of %d bytes", len(b))
	}
	_, err = s.rw.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func (s *aeSession) receive() (aeFrame, error) {
	s.touch()
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
	mine := digest(s.idx.items)
	if err := s.send(aeFrame{Count: len(s.idx.items), Digest: mine[:]}); err != nil {
		return false, err
	}
	theirs, err := s.receive()
	if err != nil || string(theirs.Digest) == string(mine[:]) {
		return false, err
	}
	k := aeBits(max(len(s.idx.items), theirs.Count))
	if err := s.send(aeFrame{Bits: k, Buckets: s.buckets(k)}); err != nil {
		return false, err
	}
	differ, entries, cut, err := s.receiveEntries(k)
	if err != nil {
		return false, err
	}
	give, want, over := s.compare(k, differ, entries, cut)
	if err := s.sendRaws(give, want); err != nil {
		return false, err
	}
	if err := s.receiveRaws(3*len(want)+1, nil); err != nil {
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
	mine := digest(s.idx.items)
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
	if f.Bits < 0 || f.Bits > maxAEBits || len(f.Buckets) != 8<<f.Bits {
		return fmt.Errorf("%w: %d bits, %d bytes of buckets", errAEProtocol, f.Bits, len(f.Buckets))
	}
	if err := s.sendEntries(f.Bits, f.Buckets); err != nil {
		return err
	}
	var want []shortID
	if err := s.receiveRaws(3*maxAEEntries, &want); err != nil {
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

// aeBits chooses so many buckets that each holds about aeBucketTarget entries.
func aeBits(count int) int {
	return min(bits.Len(uint(max(count, 0)/aeBucketTarget)), maxAEBits)
}

func (s *aeSession) buckets(k int) []byte {
	out := make([]byte, 0, 8<<k)
	for n := range 1 << k {
		d := digest(s.idx.bucket(k, n))
		out = append(out, d[:8]...)
	}
	return out
}

func (s *aeSession) sendEntries(k int, theirs []byte) error {
	mine := s.buckets(k)
	differ := make([]byte, (1<<k+7)/8)
	var list []entry
	for n := range 1 << k {
		if string(mine[8*n:8*n+8]) == string(theirs[8*n:8*n+8]) {
			continue
		}
		differ[n/8] |= 1 << (n % 8)
		for _, it := range s.idx.bucket(k, n) {
			list = append(list, it.entry)
		}
	}
	cut := len(list) > maxAEEntries
	if cut {
		// Leave out whole subjects, so that what is sent can be compared.
		end := maxAEEntries
		for end > 0 && list[end-1].Subject == list[end].Subject {
			end--
		}
		list = list[:end]
	}
	f := aeFrame{Differ: differ}
	const perFrame = 1000 // of at most 48 bytes each, beside at most 512 of bitmap
	for len(list) > perFrame {
		f.Entries, f.More, list = list[:perFrame], true, list[perFrame:]
		if err := s.send(f); err != nil {
			return err
		}
		f = aeFrame{}
	}
	f.Entries, f.More, f.Cut = list, false, cut
	return s.send(f)
}

func (s *aeSession) receiveEntries(k int) (differ []byte, entries []entry, cut bool, err error) {
	for first := true; ; first = false {
		f, err := s.receive()
		if err != nil {
			return nil, nil, false, err
		}
		if first {
			differ = f.Differ
			if len(differ) != (1<<k+7)/8 {
				return nil, nil, false, fmt.Errorf("%w: bitmap of %d bytes", errAEProtocol, len(differ))
			}
		}
		if len(entries)+len(f.Entries) > maxAEEntries || (f.More && len(f.Entries) == 0) {
			return nil, nil, false, fmt.Errorf("%w: too many entries", errAEProtocol)
		}
		entries = append(entries, f.Entries...)
		if !f.More {
			return differ, entries, f.Cut, nil
		}
	}
}

// compare finds what the peer lacks and what it has to offer.
func (s *aeSession) compare(k int, differ []byte, entries []entry, cut bool) (give []indexed, want []shortID, over bool) {
	slices.SortFunc(entries, entry.compare)
	peer := &index{byID: make(map[shortID]int, len(entries))}
	for i, e := range entries {
		peer.items = append(peer.items, indexed{entry: e})
		peer.byID[e.ID] = i
		if s.idx.wants(e) {
			want = append(want, e.ID)
		}
	}
	for n := range 1 << k {
		if differ[n/8]&(1<<(n%8)) == 0 {
			continue
		}
		for _, it := range s.idx.bucket(k, n) {
			if cut && (len(entries) == 0 || it.Subject > entries[len(entries)-1].Subject) {
				break
			}
			if peer.wants(it.entry) {
				give = append(give, it)
			}
		}
	}
	sortForSending(give)
	if len(give) > maxAEEntries {
		give, over = give[:maxAEEntries], true
	}
	return give, want, over
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
func (s *aeSession) receiveRaws(limit int, want *[]shortID) error {
	for {
		f, err := s.receive()
		if err != nil {
			return err
		}
		s.received += len(f.Raws)
		if s.received > limit || (f.More && len(f.Raws)+len(f.Want) == 0) {
			return fmt.Errorf("%w: too many frames", errAEProtocol)
		}
		if len(f.Raws) > 0 {
			if err := s.apply(f.Raws); err != nil {
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
