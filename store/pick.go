package store

import (
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// How a fetch shares its work between peers, without sockets or clock: the
// caller says what the time is.
//
// Alone with peers that have everything, segments are taken in file order. When
// others fetch the same at the same time, a peer that has everything (the
// origin) is asked only for segments that no other fetcher has, and of those for
// the ones that fall to this node by rendezvous hashing; the rest comes from the
// others. So the origin sends about one copy, whatever the number of fetchers. A
// fetcher that stopped moving is not counted on, and a node that waits too long
// takes what it needs. Until a peer has been asked twice what it has and who else
// fetches, only a part is asked of it, at a random place: nodes that start in the
// same moment do not know of each other yet.
const (
	segmentBytes = 2 << 20 // a segment is about this long …
	segmentMax   = 128     // … and never more leaves
	segmentShare = 32      // small images are cut in at least so many
	earlyShare   = 8       // this part of all may be asked before others are known

	windowAlone  = 16 << 20 // bytes asked of one peer and not yet here
	windowOrigin = 4 << 20  // the same, of an origin shared with other fetchers
	windowFellow = 8 << 20  // the same, of another fetcher

	fellowTime = 2 * time.Second // a fetcher that gained nothing for so long is not counted on
	graceStart = time.Second     // how long others' segments are waited for; halves while it does not help
	graceLeast = 20 * time.Millisecond
	askAgain   = 3 * time.Second // after so long a segment is asked of a second peer
)

// segment is a run of leaves asked for as one.
type segment struct {
	part, first, count int
	bytes              int64
	missing            int // leaves not in place
	asks               int // peers it is asked of
	asked              time.Time
}

// source is a peer that has some of what is missing.
type source struct {
	id      peer.ID
	have    []bits    // by part; nil: nothing of it
	full    bool      // has every leaf that any segment needs
	polls   int       // times it said what it has
	moved   time.Time // when have last grew
	asking  int64     // bytes asked and not yet here
	gone    bool
	refused int // leaves it said it has and then had not
}

// work is the shared state of a fetch. Callers serialise access.
type work struct {
	self     peer.ID
	segments []segment
	keys     []uint64 // per segment, the same on every node: input of rendezvous
	left     int      // leaves missing in all segments
	total    int64    // bytes of all segments
	early    int64    // bytes asked before others could be known
	cursor   int      // segments before it are asked or done
	sources  map[peer.ID]*source
	gained   time.Time // when a leaf last came
	grace    time.Duration
	rng      *rand.Rand
}

// newWork cuts what the parts lack into segments, repeats left out.
func newWork(self peer.ID, parts []*part, now time.Time, rng *rand.Rand) *work {
	w := &work{self: self, sources: map[peer.ID]*source{}, gained: now, grace: graceStart, rng: rng}
	for n, p := range parts {
		run := runLength(p.tree)
		for first := 0; first < p.tree.leaves(); {
			// Boundaries are the same on all nodes, so that fellows' segments
			// match; what is in place is skipped at their ends.
			end := min(first-first%run+run, p.tree.leaves())
			s := segment{part: n, first: first}
			for i := first; i < end; i++ {
				if _, again := p.repeats[i]; again || p.has(i) {
					if s.count == 0 {
						s.first = i + 1
						continue
					}
					end = i
					break
				}
				_, length := p.tree.span(i)
				s.count++
				s.bytes += length
			}
			if s.count > 0 {
				s.missing = s.count
				w.left += s.count
				w.total += s.bytes
				w.segments = append(w.segments, s)
				w.keys = append(w.keys, segmentKey(p, s.first-s.first%run))
			}
			first = max(end, first+1)
		}
	}
	return w
}

func runLength(t *tree) int {
	n := t.leaves()
	mean := max(t.ends[n-1]/int64(n), 1)
	return max(1, min(int(segmentBytes/mean), segmentMax, n/segmentShare))
}

func segmentKey(p *part, first int) uint64 {
	h := fnv.New64a()
	h.Write(p.entry.Root.Bytes())
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(first)))
	return h.Sum64()
}

// weight is the rendezvous weight of a peer for a segment.
func weight(key uint64, p peer.ID) uint64 {
	h := fnv.New64a()
	h.Write(binary.BigEndian.AppendUint64(nil, key))
	h.Write([]byte(p))
	x := h.Sum64() // FNV mixes its last bytes badly; finish as splitmix64 does
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// fellows are other fetchers that get on with it.
func (w *work) fellows(now time.Time) []*source {
	var out []*source
	for _, p := range w.sources {
		if !p.full && !p.gone && now.Sub(p.moved) < fellowTime {
			out = append(out, p)
		}
	}
	return out
}

// update takes what a peer says it has. full is judged on what is needed.
func (w *work) update(p *source, have []bits, now time.Time) {
	if len(p.have) == 0 || grew(p.have, have) {
		p.moved = now
	}
	p.polls++
	p.have = have
	p.full = true
	for i := range w.segments {
		if w.segments[i].missing > 0 && !w.holds(p, i) {
			p.full = false
			break
		}
	}
}

func grew(before, after []bits) bool {
	for i, b := range after {
		if i >= len(before) || len(before[i]) != len(b) {
			return len(b) > 0
		}
		for j, x := range b {
			if x&^before[i][j] != 0 {
				return true
			}
		}
	}
	return false
}

func (w *work) holds(p *source, seg int) bool {
	s := &w.segments[seg]
	if s.part >= len(p.have) || p.have[s.part] == nil {
		return false
	}
	for i := s.first; i < s.first+s.count; i++ {
		if !p.have[s.part].has(i) {
			return false
		}
	}
	return true
}

func (w *work) todo(i int) bool { return w.segments[i].asks == 0 && w.segments[i].missing > 0 }

// pick chooses the next segment to ask p for; false means not now.
func (w *work) pick(p *source, now time.Time) (int, bool) {
	fellows := w.fellows(now)
	window := int64(windowAlone)
	switch {
	case !p.full:
		window = windowFellow
	case len(fellows) > 0:
		window = windowOrigin
	}
	if p.gone || p.asking >= window {
		return 0, false
	}
	var seg int
	var ok bool
	switch {
	case !p.full:
		seg, ok = w.rarest(p)
	case len(fellows) == 0 && p.polls < 2:
		seg, ok = w.anywhere()
	case len(fellows) == 0:
		seg, ok = w.inOrder()
	default:
		seg, ok = w.ours(fellows, now)
	}
	if !ok {
		seg, ok = w.slow(p, now)
	}
	if !ok {
		return 0, false
	}
	s := &w.segments[seg]
	s.asks++
	s.asked = now
	p.asking += s.bytes
	return seg, true
}

func (w *work) inOrder() (int, bool) {
	for ; w.cursor < len(w.segments); w.cursor++ {
		if w.todo(w.cursor) {
			return w.cursor, true
		}
	}
	return 0, false
}

// anywhere is a random segment, within what may be asked early.
func (w *work) anywhere() (int, bool) {
	start := w.start()
	for n := range w.segments {
		i := (start + n) % len(w.segments)
		if !w.todo(i) {
			continue
		}
		bytes := w.segments[i].bytes
		if w.early > 0 && w.early+bytes > w.total/earlyShare {
			return 0, false
		}
		w.early += bytes
		return i, true
	}
	return 0, false
}

// rarest is the segment of p that the fewest peers have.
func (w *work) rarest(p *source) (int, bool) {
	best, holders, found := 0, 0, false
	start := w.start()
	for n := range w.segments {
		i := (start + n) % len(w.segments)
		if !w.todo(i) || !w.holds(p, i) {
			continue
		}
		count := 0
		for _, o := range w.sources {
			if !o.gone && w.holds(o, i) {
				count++
			}
		}
		if !found || count < holders {
			best, holders, found = i, count, true
		}
		if count <= 2 { // p and the origin: no segment is rarer
			break
		}
	}
	return best, found
}

// ours is a segment no fellow has that falls to this node, or after a while any
// that is needed.
func (w *work) ours(fellows []*source, now time.Time) (int, bool) {
	foreign, found := 0, false
	start := w.start()
	for n := range w.segments {
		i := (start + n) % len(w.segments)
		if !w.todo(i) || w.heldBy(fellows, i) {
			continue
		}
		if w.owner(fellows, i) == w.self {
			return i, true
		}
		foreign, found = i, true
	}
	if !found { // fellows have all the rest; but they may not give it
		foreign, found = w.inOrder()
	}
	if found && now.Sub(w.gained) >= w.grace {
		w.grace = max(w.grace/2, graceLeast)
		w.gained = now
		return foreign, true
	}
	return 0, false
}

func (w *work) heldBy(peers []*source, seg int) bool {
	for _, p := range peers {
		if w.holds(p, seg) {
			return true
		}
	}
	return false
}

func (w *work) owner(fellows []*source, seg int) peer.ID {
	best, top := w.self, weight(w.keys[seg], w.self)
	for _, p := range fellows {
		if x := weight(w.keys[seg], p.id); x > top || x == top && p.id > best {
			best, top = p.id, x
		}
	}
	return best
}

// slow is a segment asked of one other peer long ago.
func (w *work) slow(p *source, now time.Time) (int, bool) {
	for i := range w.segments {
		s := &w.segments[i]
		if s.missing > 0 && s.asks == 1 && now.Sub(s.asked) > askAgain && w.holds(p, i) {
			return i, true
		}
	}
	return 0, false
}

func (w *work) start() int {
	if len(w.segments) == 0 {
		return 0
	}
	return w.rng.IntN(len(w.segments))
}

// came notes a leaf of a segment in place, from a fellow or from an origin.
func (w *work) came(seg int, from *source, now time.Time) {
	w.segments[seg].missing--
	w.left--
	w.gained = now
	if from != nil && !from.full {
		w.grace = graceStart
	}
}

// answered notes that p owes a segment no more; if leaves of it are missing
// still, it is to be asked again.
func (w *work) answered(p *source, seg int) {
	s := &w.segments[seg]
	s.asks--
	p.asking -= s.bytes
	if s.missing > 0 && s.asks == 0 {
		w.cursor = min(w.cursor, seg)
	}
}
