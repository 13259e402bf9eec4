package des

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// disk is what outlives a crash: the log of statements, up to what is synced.
type disk struct {
	base   []stmt.Verified // shared; what the swarm began with
	tail   []stmt.Verified
	synced int // of tail
	flush  bool
	epoch  uint64
	votes  kept

	full   time.Duration // nothing can be written before that
	slow   time.Duration // what every write takes longer
	eased  time.Duration // when slow ends
	rotten int           // from this frame on, counted from 1, the log is garbage; 0: it is whole
}

func (d *disk) log() []stmt.Verified { return slices.Concat(d.base, d.tail[:d.synced]) }

// cut is a log that is cut at a frame: what follows is gone (crdt's log is cut at
// the first frame that is not whole).
func (d *disk) cut(frame int) {
	if frame < len(d.base) {
		d.base, d.tail, d.synced = d.base[:frame:frame], nil, 0
		return
	}
	d.synced = min(d.synced, frame-len(d.base))
	d.tail = d.tail[:d.synced:d.synced]
}

// service is how long lies between an end of the daemon and its next start, by the
// machine's service manager.
const service = 5 * time.Second

// fsync is how long a write takes now.
func (n *node) fsync() time.Duration {
	d := n.sim.cfg.Fsync.draw(n.rng)
	if n.sim.now < n.disk.eased {
		d += n.disk.slow
	}
	return d
}

// fails says whether a write fails; then the daemon has ended, as formd does when
// its log has failed, and is started again and again until there is room.
func (n *node) fails() bool {
	if n.disk.full <= n.sim.now {
		return false
	}
	n.sim.Seen["a write failed"]++
	n.sim.Crash(int(n.i), false)
	n.sim.Do(service, func() { n.sim.Start(int(n.i)) })
	return true
}

// FillDisk has a node be able to write nothing for d.
func (s *Sim) FillDisk(i int, d time.Duration) {
	s.nodes[i].disk.full = max(s.nodes[i].disk.full, s.now+d)
	s.Seen["disk full"]++
}

// SlowDisk has every write of a node take so much longer, for d.
func (s *Sim) SlowDisk(i int, by, d time.Duration) {
	s.nodes[i].disk.slow, s.nodes[i].disk.eased = by, s.now+d
	s.Seen["slow disk"]++
}

// Tear crashes a machine while it writes: a part, drawn, of what was not synced has
// reached the disk, the next frame by half, which is cut off at the start.
func (s *Sim) Tear(i int, rng *rand.Rand) {
	n := s.nodes[i]
	if !n.up {
		return
	}
	d := &n.disk
	if open := len(d.tail) - d.synced; open > 0 {
		d.synced += rng.IntN(open + 1)
		s.Seen["torn log"]++
	}
	s.Crash(i, true)
}

// Rot has a frame of a node's log, drawn, read as garbage: from the next start on
// what follows it is gone. Its boot epoch and its votes are in files of their own.
func (s *Sim) Rot(i int, rng *rand.Rand) {
	n := s.nodes[i]
	if frames := len(n.disk.base) + n.disk.synced; frames > 0 {
		n.disk.rotten = 1 + rng.IntN(frames)
		s.Seen["bit rot"]++
	}
}
