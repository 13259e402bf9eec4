package proc

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
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

// Bounds of a wire: the longest frame, and how many are on their way to one node;
// more are lost, as by any line that is full.
const (
	maxFrame   = 2048
	maxFrames  = 4096
	linkHeader = 14 // of an Ethernet frame: to, from and type
	typeIPv4   = 0x0800
)

// hardware is the address of node n's interface.
func hardware(n int) [6]byte { return [6]byte{0x02, 0, 0, 0, 0, byte(n)} }

// wire is a switch in this process whose frames take time, and get lost no more than
// lines say. Frames of one node for another come in the order they were sent.
type wire struct {
	*lines
	ends  []io.ReadWriteCloser // of nodes, by number; each read and write is a frame
	lanes []*lane
	done  sync.WaitGroup
	ended chan struct{}
}

// newWire carries frames between ends until close. An end that fails is nobody's any
// more.
func newWire(l *lines, ends []io.ReadWriteCloser) *wire {
	w := &wire{lines: l, ends: ends, ended: make(chan struct{})}
	for range ends {
		w.lanes = append(w.lanes, &lane{wake: make(chan struct{}, 1)})
	}
	for i := range ends {
		w.done.Go(func() { w.listen(i) })
		w.done.Go(func() { w.deliver(i) })
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
func (w *wire) slow(n int, by time.Duration) {
	l := w.lanes[n]
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow = by
}

// listen takes frames from a node.
func (w *wire) listen(from int) {
	b := make([]byte, maxFrame)
	links := make([]*rand.Rand, len(w.ends))
	for to := range links {
		links[to] = chance.Stream(w.seed, useWire, uint64(from), uint64(to))
	}
	last := make([]time.Time, len(w.ends))
	for {
		n, err := w.ends[from].Read(b)
		if err != nil {
			return
		}
		if n < linkHeader {
			continue
		}
		for to := range w.ends {
			self := hardware(to)
			if many := b[0]&1 != 0; to != from && (many || bytes.Equal(b[:6], self[:])) {
				last[to] = w.carry(from, to, b[:n], links[to], last[to])
			}
		}
	}
}

// carry puts a copy of a frame on its way, and says when it is there: not before the
// last.
func (w *wire) carry(from, to int, frame []byte, rng *rand.Rand, last time.Time) time.Time {
	least, l := w.delay(from, to), w.lanes[to]
	copies := 1
	if rng.Float64() < w.duplicate {
		copies = 2
	}
	for range copies {
		f := bytes.Clone(frame)
		if rng.Float64() < w.damage && binary.BigEndian.Uint16(f[linkHeader-2:]) == typeIPv4 { // what has no checksum is not damaged
			bit := rng.IntN(8 * (len(f) - linkHeader))
			f[linkHeader+bit/8] ^= 1 << (bit % 8)
		}
		l.mu.Lock()
		due := time.Now().Add(least + time.Duration(rng.Float64()*regions.Jitter*float64(least)) + l.slow)
		if due.Before(last) {
			due = last
		}
		last = due
		if len(l.queue) < maxFrames {
			l.seq++
			heap.Push(&l.queue, onWay{due, l.seq, f})
		}
		l.mu.Unlock()
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return last
}

// deliver gives a node what is due.
func (w *wire) deliver(to int) {
	l := w.lanes[to]
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		frame, wait := l.next(time.Now())
		if frame != nil {
			// A node whose interface is down, or whose queue is full, loses it.
			if _, err := w.ends[to].Write(frame); errors.Is(err, os.ErrClosed) {
				return
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-w.ended:
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// lane is what is on its way to a node.
type lane struct {
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	queue frames
	seq   uint64
	slow  time.Duration
}

// next is a frame that is due; nil: in so long there may be one.
func (l *lane) next(now time.Time) ([]byte, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, time.Hour
	}
	if d := l.queue[0].due.Sub(now); d > 0 {
		return nil, d
	}
	return heap.Pop(&l.queue).(onWay).frame, 0
}

// onWay is a frame that is due at a time; those of one time in their order.
type onWay struct {
	due   time.Time
	seq   uint64
	frame []byte
}

// frames is a heap by when they are due.
type frames []onWay

func (q frames) Len() int { return len(q) }
func (q frames) Less(i, j int) bool {
	if !q[i].due.Equal(q[j].due) {
		return q[i].due.Before(q[j].due)
	}
	return q[i].seq < q[j].seq
}
func (q frames) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *frames) Push(x any)   { *q = append(*q, x.(onWay)) }
func (q *frames) Pop() any {
	old := *q
	p := old[len(old)-1]
	old[len(old)-1] = onWay{}
	*q = old[:len(old)-1]
	return p
}
