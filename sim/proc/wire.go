package proc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/regions"
	"github.com/formthefog/formation/sim/scenario"
)

// lines is what becomes of frames between nodes. Probabilities are of each.
type lines struct {
	seed      uint64
	at        []int // the region of each node; nil: frames take no time
	duplicate float64
	damage    float64 // a bit is other than it was: the receiver's kernel finds that, and drops it
}

// linesOf are those that a plan wants; nil: the kernel's bridge does.
func linesOf(p *scenario.Plan) *lines {
	n := p.Network
	slow := slices.ContainsFunc(p.Steps, func(s scenario.Step) bool { return s.Do == "slow" })
	if !n.Regions && n.Duplicate == 0 && n.Damage == 0 && !slow {
		return nil
	}
	l := &lines{seed: p.Seed, duplicate: n.Duplicate, damage: n.Damage}
	if n.Regions {
		l.at = regions.Places(p.Nodes, p.Seed)
	}
	return l
}

// delay is the least that a frame takes.
func (l *lines) delay(from, to int) time.Duration {
	if l.at == nil {
		return 0
	}
	return regions.RoundTrip(l.at[from], l.at[to]) / 2
}

// Bounds of a wire: the longest frame, and how many are on their way from one node to
// another; more are lost, as by any line that is full.
const (
	maxFrame   = 2048
	maxFrames  = 1024
	linkHeader = 14 // of an Ethernet frame: to, from and type
	typeIPv4   = 0x0800
)

// hardware is the address of node n's interface.
func hardware(n int) [6]byte { return [6]byte{0x02, 0, 0, 0, 0, byte(n)} }

// wire is a switch in this process, on which frames fare as its lines say. Those of one
// node for another come in the order they were sent.
type wire struct {
	*lines
	ends  []io.ReadWriteCloser // of nodes, by number; each read and write is a frame
	extra []atomic.Int64       // nanoseconds that what comes to each takes longer
	done  sync.WaitGroup
	ended chan struct{}
}

// onWay is a frame that is due at a time.
type onWay struct {
	due   time.Time
	frame []byte
}

// newWire carries frames between ends until close. An end that fails is nobody's any
// more.
func newWire(l *lines, ends []io.ReadWriteCloser) *wire {
	w := &wire{lines: l, ends: ends, extra: make([]atomic.Int64, len(ends)), ended: make(chan struct{})}
	for i := range ends {
		w.done.Go(func() { w.listen(i) })
	}
	return w
}

// close closes the ends, and returns once nothing is carried any more.
func (w *wire) close() error {
	close(w.ended)
	var err error
	for _, e := range w.ends {
		if cerr := e.Close(); !errors.Is(cerr, os.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	w.done.Wait()
	return err
}

// slow has what comes to a node take so much longer from now on.
func (w *wire) slow(n int, by time.Duration) { w.extra[n].Store(int64(by)) }

// listen takes frames from a node.
func (w *wire) listen(from int) {
	links := make([]*link, len(w.ends))
	for to := range links {
		links[to] = &link{wire: w, from: from, to: to, rng: chance.Stream(w.seed, useWire, uint64(from), uint64(to)), way: make(chan onWay, maxFrames-1)} // deliver has one more
		w.done.Go(links[to].deliver)
	}
	for b := make([]byte, maxFrame); ; {
		n, err := w.ends[from].Read(b)
		if err != nil {
			return
		}
		if n < linkHeader {
			continue
		}
		for to, l := range links {
			self := hardware(to)
			if many := b[0]&1 != 0; to != from && (many || bytes.Equal(b[:6], self[:])) {
				l.carry(b[:n])
			}
		}
	}
}

// link is the way from one node to another.
type link struct {
	*wire
	from, to int
	rng      *rand.Rand
	last     time.Time // when the frame before is there
	way      chan onWay
}

// carry puts a copy of a frame on its way, or two.
func (l *link) carry(frame []byte) {
	copies := 1
	if l.rng.Float64() < l.duplicate {
		copies = 2
	}
	least := l.delay(l.from, l.to)
	for range copies {
		f := bytes.Clone(frame)
		if l.rng.Float64() < l.damage && binary.BigEndian.Uint16(f[linkHeader-2:]) == typeIPv4 && len(f) > linkHeader { // what has no checksum is not damaged
			bit := l.rng.IntN(8 * (len(f) - linkHeader))
			f[linkHeader+bit/8] ^= 1 << (bit % 8)
		}
		jitter := time.Duration(l.rng.Float64() * regions.Jitter * float64(least))
		if due := time.Now().Add(least + jitter + time.Duration(l.extra[l.to].Load())); due.After(l.last) {
			l.last = due
		}
		select {
		case l.way <- onWay{l.last, f}:
		default:
		}
	}
}

// deliver gives the node what is due.
func (l *link) deliver() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var next onWay
		select {
		case <-l.ended:
			return
		case next = <-l.way:
		}
		timer.Reset(time.Until(next.due))
		select {
		case <-l.ended:
			return
		case <-timer.C:
		}
		// A node whose interface is down, or whose queue is full, loses it.
		if _, err := l.ends[l.to].Write(next.frame); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}
