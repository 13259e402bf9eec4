package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
)

const (
	maxSources    = 12                     // peers asked at once
	pollFellow    = 150 * time.Millisecond // how often a fetcher is asked what it has
	pollOrigin    = 500 * time.Millisecond // how often a whole holder is asked who else fetches
	checkpointLen = 32 << 20               // bytes …
	checkpointAge = 2 * time.Second        // … or time between checkpoints
	leafBufferMem = 8 << 20                // bytes of leaves between network and disk
	maxRefusals   = 64                     // leaves announced and not given
)

// swarm is the transfer of one job: peers on one side, parts on the other.
type swarm struct {
	j       *job
	parts   []*part
	entries []cid.Cid
	ctx     context.Context // ends with the transfer
	group   *errgroup.Group
	first   *opening // nil once used, or if the nodes were here
	longest int64    // bytes of the longest leaf
	buffers chan []byte
	arrived chan arrival
	placed  chan placed
	ready   chan *part // all its leaves are in place

	mu       sync.Mutex
	work     *work
	wake     chan struct{} // closed when something changed
	whole    chan struct{} // closed when no leaf is missing
	lacking  []int         // leaves that segments of each part lack
	known    map[peer.ID]bool
	waiting  []peer.ID // known and not yet asked
	noBulk   bool      // a peer is there that does not speak bulk
	lastSeen time.Time // when a bulk peer was last at work
}

// arrival is a leaf on its way to disk.
type arrival struct {
	from  *source
	asked *asked
	seg   int
	leaf  int
	data  []byte
	fail  context.CancelCauseFunc // of the peer
}

func newSwarm(j *job, parts []*part, first *opening) *swarm {
	self := peer.ID("")
	if f, ok := j.fetcher.(interface{ ID() peer.ID }); ok {
		self = f.ID()
	}
	now := time.Now()
	w := &swarm{
		j: j, parts: parts, wake: make(chan struct{}), whole: make(chan struct{}),
		first: first, ready: make(chan *part, len(parts)), known: map[peer.ID]bool{}, lastSeen: now,
		work:    newWork(self, parts, now, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))),
		lacking: make([]int, len(parts)),
	}
	for _, p := range parts {
		w.entries = append(w.entries, p.entry.Root)
		for i := range p.tree.leaves() {
			_, length := p.tree.span(i)
			w.longest = max(w.longest, length)
		}
	}
	for _, s := range w.work.segments {
		w.lacking[s.part] += s.count
	}
	w.buffers = make(chan []byte, max(6, leafBufferMem/w.longest))
	w.arrived = make(chan arrival, 2)
	w.placed = make(chan placed, cap(w.buffers)+wantInFlight)
	for range cap(w.buffers) {
		w.buffers <- nil // made when first used
	}
	return w
}

// run moves everything that is missing, and finishes the parts. It returns when
// all is done, or with the first error that no other peer can mend.
func (w *swarm) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first := w.first
	group, ctx := errgroup.WithContext(ctx)
	w.ctx, w.group = ctx, group
	for i, n := range w.lacking {
		if n == 0 {
			w.ready <- w.parts[i]
		}
	}
	if w.work.left == 0 {
		close(w.whole)
	}
	network, stop := context.WithCancel(ctx)
	group.Go(func() error {
		defer cancel() // ends the watchers below; Wait has its nil by then
		return w.finish(ctx)
	})
	group.Go(func() error {
		select {
		case <-w.whole:
		case <-ctx.Done():
		}
		stop()
		return nil
	})
	if w.work.left > 0 {
		group.Go(func() error { return w.verify(network) })
		group.Go(func() error { return w.hash(network) })
		group.Go(func() error { return w.seek(network) })
		group.Go(func() error { return w.checkpoint(network) })
		if first != nil {
			w.add(network, first.from)
		}
		for _, p := range w.j.known() {
			w.add(network, p)
		}
	}
	err := group.Wait()
	if errors.Is(err, context.Canceled) && w.j.ctx.Err() != nil {
		return w.j.ctx.Err()
	}
	return err
}

// finish turns parts into images as they get ready.
func (w *swarm) finish(ctx context.Context) error {
	for range w.parts {
		select {
		case p := <-w.ready:
			gained, err := p.borrow() // repeats
			w.j.local.Add(gained)
			if err != nil {
				return err
			}
			if err := p.finish(); err != nil {
				return err
			}
			w.j.s.drop(p) // others may be waiting for this image
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// verify hashes and writes leaves, at the end of ctx also those that wait.
func (w *swarm) verify(ctx context.Context) error {
	for {
		select {
		case a := <-w.arrived:
			if err := w.store(a); err != nil {
				return err
			}
			continue
		default:
		}
		select {
		case a := <-w.arrived:
			if err := w.store(a); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// store puts one leaf into its part.
func (w *swarm) store(a arrival) error {
	p := w.parts[w.work.segments[a.seg].part]
	added, err := p.put(a.leaf, a.data)
	if errors.Is(err, ErrCorrupt) {
		a.fail(err)
		w.give(a.data)
		w.settled(a.from, a.asked, 1)
		return nil
	}
	if err != nil {
		return err
	}
	w.placed <- placed{p, a.leaf, a.data, true} // holds more than there are buffers
	if added {
		w.landed(a)
	}
	w.settled(a.from, a.asked, 1)
	return nil
}

// placed is a leaf on disk whose bytes are still at hand.
type placed struct {
	part *part
	leaf int
	data []byte
	ours bool // data is a buffer of the swarm, to be given back
}

// hash carries the whole-file hashes on beside the writing, from the bytes at
// hand where they come in file order.
func (w *swarm) hash(ctx context.Context) error {
	for {
		select {
		case l := <-w.placed:
			err := l.part.advance(l.leaf, l.data)
			if l.ours {
				w.give(l.data)
			}
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// landed counts a leaf in place.
func (w *swarm) landed(a arrival) {
	_, length := w.parts[w.work.segments[a.seg].part].tree.span(a.leaf)
	w.j.fetched.Add(length)
	w.j.blocks.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.work.came(a.seg, a.from, time.Now())
	n := w.work.segments[a.seg].part
	if w.lacking[n]--; w.lacking[n] == 0 {
		w.ready <- w.parts[n]
	}
	if w.work.left == 0 {
		close(w.whole)
	}
}

// checkpoint makes progress durable from time to time.
func (w *swarm) checkpoint(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last, lastBytes := time.Now(), w.j.fetched.Load()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, p := range w.parts {
			if err := p.writeBack(); err != nil {
				return err
			}
		}
		got := w.j.fetched.Load() - lastBytes
		if got < checkpointLen && (got == 0 || time.Since(last) < checkpointAge) {
			continue
		}
		last, lastBytes = time.Now(), lastBytes+got
		for _, p := range w.parts {
			if missing, _ := p.state(); missing == 0 {
				continue // finish sees to it
			}
			if err := p.checkpoint(); err != nil {
				return err
			}
		}
	}
}

// room takes a buffer for a leaf of n bytes, waiting for one.
func (w *swarm) room(ctx context.Context, n int64) []byte {
	select {
	case b := <-w.buffers:
		if int64(cap(b)) < n {
			b = make([]byte, w.longest)
		}
		return b[:n]
	case <-ctx.Done():
		return nil
	}
}

func (w *swarm) give(b []byte) { w.buffers <- b[:0] }

// changed wakes everyone who waits for something to ask. Callers hold mu.
func (w *swarm) changed() {
	close(w.wake)
	w.wake = make(chan struct{})
}

// add takes a peer in, unless it is known.
func (w *swarm) add(ctx context.Context, id peer.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known[id] || id == w.work.self {
		return
	}
	w.known[id] = true
	if w.live() >= maxSources {
		w.waiting = append(w.waiting, id)
		return
	}
	w.start(ctx, id)
}

// live counts peers in use. Callers hold mu.
func (w *swarm) live() int {
	n := 0
	for _, p := range w.work.sources {
		if !p.gone {
			n++
		}
	}
	return n
}

// start begins asking a peer. Callers hold mu.
func (w *swarm) start(ctx context.Context, id peer.ID) {
	p := &source{id: id, moved: time.Now()}
	w.work.sources[id] = p
	w.group.Go(func() error {
		w.follow(ctx, p)
		return nil
	})
}

// seek finds peers while the ones there are do not suffice, starts bitswap when
// bulk streams lead nowhere, and gives up when nobody is left.
func (w *swarm) seek(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	var looked time.Time
	searching := make(chan struct{}, 1)
	bitswapping := false
	for {
		if time.Since(looked) > w.j.s.cfg.Stall {
			looked = time.Now()
			select {
			case searching <- struct{}{}:
				w.group.Go(func() error {
					defer func() { <-searching }()
					w.find(ctx)
					return nil
				})
			default:
			}
		}
		for _, p := range w.j.known() { // a later caller may have named more
			w.add(ctx, p)
		}
		w.mu.Lock()
		idle := time.Since(w.lastSeen)
		if w.j.peers.Load() > 0 {
			idle = 0
			w.lastSeen = time.Now()
		}
		noBulk := w.noBulk
		w.mu.Unlock()
		if !bitswapping && (w.j.bitswap || idle > hedge && noBulk || idle > w.j.s.cfg.Stall/2) {
			bitswapping = true
			w.group.Go(func() error { return w.bitswap(ctx) })
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *swarm) find(ctx context.Context) {
	peers, err := w.j.fetcher.Providers(ctx, w.j.root)
	if err != nil && ctx.Err() == nil {
		w.j.s.log.Debug("no providers", "pack", w.j.root, "err", err)
	}
	for _, p := range peers {
		w.add(ctx, p)
	}
}

// errNobody says why a transfer ended before its end.
func (w *swarm) errNobody() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Errorf("%w: %d chunks are missing and %d peers were asked", ErrNoPeer, w.work.left, len(w.known))
}
