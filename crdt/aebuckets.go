package crdt

import (
	"fmt"
	"math/bits"
	"slices"
)

// levels are the buckets of one session: by the first k bits of the subject, and
// those of them that differ by a further bits.
type levels struct {
	k, sub int
	differ []int  // the buckets of the first level that differ, ascending
	finer  []byte // bitmap: which buckets of the second level do
}

// prefixes yields the buckets of the second level, in order, by number and by the
// first k + sub bits of their subjects.
func (l *levels) prefixes() func(func(n, prefix int) bool) {
	return func(yield func(n, prefix int) bool) {
		n := 0
		for _, b := range l.differ {
			for i := range 1 << l.sub {
				if !yield(n, b<<l.sub|i) {
					return
				}
				n++
			}
		}
	}
}

func (l *levels) count() int { return len(l.differ) << l.sub }

// firstBits splits the bits between the levels, so that a session that finds
// little costs the square root of one that lists all buckets.
func firstBits(count int) int { return min((aeBits(count)+1)/2, maxAEBits) }

// aeBits is how many bits make buckets of about aeBucketTarget entries.
func aeBits(count int) int { return bits.Len(uint(max(count, 0) / aeBucketTarget)) }

func isSet(bitmap []byte, n int) bool { return bitmap[n/8]&(1<<(n%8)) != 0 }

// firstLevel is the digests of all buckets by so many bits, to be read only.
func (x *index) firstLevel(bits int) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	sums, made := x.first[bits]
	if !made {
		sums = x.digests(nil, bits, 0, 1<<bits)
		if x.first == nil {
			x.first = map[int][]byte{}
		}
		x.first[bits] = sums
	}
	return sums
}

// digests appends the 8 bytes of digest of count buckets, from the one numbered
// first of those by so many bits.
func (x *index) digests(out []byte, bits, first, count int) []byte {
	rest := x.from(bits, first)
	for n := first; n < first+count; n++ {
		i := 0
		for i < len(rest) && bucketOf(rest[i].Subject, bits) == n {
			i++
		}
		out = append(out, bucketDigest(rest[:i])...)
		rest = rest[i:]
	}
	return out
}

var emptyDigest = digest(nil)

func bucketDigest(items []indexed) []byte {
	if len(items) == 0 {
		return emptyDigest[:8]
	}
	d := digest(items)
	return d[:8]
}

// sendBuckets sends the digests of both levels; between them the peer says which
// of the first differ.
func (s *aeSession) sendBuckets(count int, l *levels) error {
	if err := s.send(aeFrame{Bits: l.k, Buckets: s.idx.firstLevel(l.k)}); err != nil {
		return err
	}
	f, err := s.receive()
	if err != nil {
		return err
	}
	if len(f.Differ) != (1<<l.k+7)/8 {
		return fmt.Errorf("%w: bitmap of %d bytes", errAEProtocol, len(f.Differ))
	}
	for n := range 1 << l.k {
		if isSet(f.Differ, n) {
			l.differ = append(l.differ, n)
		}
	}
	l.sub = min(max(aeBits(count)-l.k, 0), maxSubBits)
	for l.count() > maxAESub {
		l.sub--
	}
	var out []byte
	for _, b := range l.differ {
		out = s.idx.digests(out, l.k+l.sub, b<<l.sub, 1<<l.sub)
	}
	f = aeFrame{Bits: l.sub}
	for len(out) > aeBatch {
		f.Buckets, f.More, out = out[:aeBatch], true, out[aeBatch:]
		if err := s.send(f); err != nil {
			return err
		}
		f = aeFrame{}
	}
	f.Buckets, f.More = out, false
	return s.send(f)
}

// receiveBuckets is the other side of sendBuckets; f is its first frame.
func (s *aeSession) receiveBuckets(f aeFrame) (*levels, error) {
	if f.Bits < 0 || f.Bits > maxAEBits || len(f.Buckets) != 8<<f.Bits {
		return nil, fmt.Errorf("%w: %d bits, %d bytes of buckets", errAEProtocol, f.Bits, len(f.Buckets))
	}
	l := &levels{k: f.Bits}
	differ := make([]byte, (1<<l.k+7)/8)
	mine := s.idx.firstLevel(l.k)
	for n := range 1 << l.k {
		if string(mine[8*n:8*n+8]) != string(f.Buckets[8*n:8*n+8]) {
			differ[n/8] |= 1 << (n % 8)
			l.differ = append(l.differ, n)
		}
	}
	if err := s.send(aeFrame{Differ: differ}); err != nil {
		return nil, err
	}
	var theirs []byte
	for first := true; ; first = false {
		f, err := s.receive()
		if err != nil {
			return nil, err
		}
		if first {
			if f.Bits < 0 || f.Bits > maxSubBits || len(l.differ)<<f.Bits > maxAESub {
				return nil, fmt.Errorf("%w: %d further bits of %d buckets", errAEProtocol, f.Bits, len(l.differ))
			}
			l.sub = f.Bits
		}
		theirs = append(theirs, f.Buckets...)
		if len(theirs) > 8*l.count() || f.More == (len(theirs) == 8*l.count()) || (f.More && len(f.Buckets) == 0) {
			return nil, fmt.Errorf("%w: %d bytes of buckets, want %d", errAEProtocol, len(theirs), 8*l.count())
		}
		if !f.More {
			break
		}
	}
	l.finer, mine = make([]byte, (l.count()+7)/8), nil
	for i, b := range l.differ {
		mine = s.idx.digests(mine[:0], l.k+l.sub, b<<l.sub, 1<<l.sub)
		for j := range 1 << l.sub {
			n := i<<l.sub | j
			if string(mine[8*j:8*j+8]) != string(theirs[8*n:8*n+8]) {
				l.finer[n/8] |= 1 << (n % 8)
			}
		}
	}
	return l, nil
}

// sendEntries sends which buckets of the second level differ and what is held in
// them.
func (s *aeSession) sendEntries(l *levels) error {
	var list []entry
	for n, prefix := range l.prefixes() {
		if !isSet(l.finer, n) {
			continue
		}
		for _, it := range s.idx.bucket(l.k+l.sub, prefix) {
			list = append(list, it.entry)
		}
		if len(list) > maxAEEntries {
			break
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
	f := aeFrame{Differ: l.finer}
	const perFrame = 900 // of at most 48 bytes each, beside at most 16 KiB of bitmap
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

func (s *aeSession) receiveEntries(l *levels) (entries []entry, cut bool, err error) {
	for first := true; ; first = false {
		f, err := s.receive()
		if err != nil {
			return nil, false, err
		}
		if first {
			if l.finer = f.Differ; len(l.finer) != (l.count()+7)/8 {
				return nil, false, fmt.Errorf("%w: bitmap of %d bytes", errAEProtocol, len(l.finer))
			}
		}
		if len(entries)+len(f.Entries) > maxAEEntries || (f.More && len(f.Entries) == 0) {
			return nil, false, fmt.Errorf("%w: too many entries", errAEProtocol)
		}
		entries = append(entries, f.Entries...)
		if !f.More {
			return entries, f.Cut, nil
		}
	}
}

// compare finds what the peer lacks and what it has to offer: come is how many
// statements that may be.
func (s *aeSession) compare(l *levels, entries []entry, cut bool) (give []indexed, want []shortID, come int, over bool) {
	slices.SortFunc(entries, entry.compare)
	peer := &index{byID: make(map[shortID]int, len(entries))}
	for i, e := range entries {
		peer.items = append(peer.items, indexed{entry: e})
		peer.byID[e.ID] = i
		if s.idx.wants(e) {
			want = append(want, e.ID)
			come += e.statements()
		}
	}
	for n, prefix := range l.prefixes() {
		if !isSet(l.finer, n) {
			continue
		}
		for _, it := range s.idx.bucket(l.k+l.sub, prefix) {
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
	return give, want, come, over
}
