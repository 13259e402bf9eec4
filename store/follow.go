package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
)

// attempts to use one peer, with growing pauses, before it is left aside.
const attempts = 3

// follow gets leaves from one peer for as long as there are any to get, and
// comes back to it after failures that may pass.
func (w *swarm) follow(ctx context.Context, p *source) {
	defer w.leave(ctx, p)
	for n := range attempts {
		began := w.j.fetched.Load()
		err := w.use(ctx, p)
		if err == nil || ctx.Err() != nil {
			return
		}
		w.j.s.log.Debug("peer failed", "peer", p.id, "pack", w.j.root, "attempt", n+1, "err", err)
		if errors.Is(err, ErrCorrupt) {
			w.j.blame(p.id, err)
			return
		}
		pause := time.Second << n
		if w.j.fetched.Load() > began {
			pause = 100 * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// leave writes a peer off and lets the next in.
func (w *swarm) leave(ctx context.Context, p *source) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.gone = true
	w.changed()
	if len(w.waiting) > 0 && ctx.Err() == nil {
		next := w.waiting[0]
		w.waiting = w.waiting[1:]
		w.start(ctx, next)
	}
}

// use works with one peer over two streams: one to ask what it has and who else
// fetches, one for the leaves.
func (w *swarm) use(ctx context.Context, p *source) (err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	defer func() {
		if cause := context.Cause(ctx); errors.Is(cause, ErrCorrupt) {
			err = cause
		}
	}()
	stream, err := w.open(ctx, p)
	if err != nil {
		return err
	}
	defer stream.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.keepPolling(ctx, p) })
	if !w.j.bitswap {
		group.Go(func() error {
			// Reading ends first; the poller must not go on alone.
			defer fail(nil)
			w.j.peers.Add(1)
			defer w.j.peers.Add(-1)
			return w.read(ctx, stream, p, fail)
		})
	}
	return group.Wait()
}

// open gives a stream to a peer that has said what it has.
func (w *swarm) open(ctx context.Context, p *source) (Bulk, error) {
	w.mu.Lock()
	first := w.first
	if first != nil && first.from == p.id {
		w.first = nil
	} else {
		first = nil
	}
	w.mu.Unlock()
	if first != nil {
		raw := make([][]byte, len(w.entries))
		for i, c := range w.entries {
			raw[i] = first.have[c]
		}
		if err := w.take(p, raw, first.others); err != nil {
			return nil, errors.Join(err, first.stream.Close())
		}
		return first.stream, nil
	}
	stream, err := w.j.fetcher.Bulk(ctx, p.id)
	if err != nil {
		w.mu.Lock()
		w.noBulk = true
		w.mu.Unlock()
		return nil, err
	}
	if err := w.poll(ctx, stream, p); err != nil {
		return nil, errors.Join(err, stream.Close())
	}
	return stream, nil
}

// keepPolling asks a peer what it has, again and again, over a stream of its own.
func (w *swarm) keepPolling(ctx context.Context, p *source) error {
	var talk Bulk
	for {
		w.mu.Lock()
		pause := pollFellow
		switch {
		case p.polls < 2: // see pick
			pause = 0
		case p.full:
			pause = pollOrigin
		}
		w.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		if talk == nil {
			var err error
			if talk, err = w.j.fetcher.Bulk(ctx, p.id); err != nil {
				return unlessEnded(ctx, err)
			}
			defer talk.Close()
		}
		if err := w.poll(ctx, talk, p); err != nil {
			return unlessEnded(ctx, err)
		}
	}
}

func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// poll asks a peer once what it has.
func (w *swarm) poll(ctx context.Context, talk Bulk, p *source) error {
	raw, others, err := talk.Have(ctx, w.entries)
	if err != nil {
		return err
	}
	return w.take(p, raw, others)
}

// take notes what a peer says it has, and who else fetches.
func (w *swarm) take(p *source, raw [][]byte, others []peer.ID) error {
	have := make([]bits, len(w.parts))
	for i, b := range raw {
		if b == nil || i >= len(have) {
			continue
		}
		if len(b) != len(newBits(w.parts[i].tree.leaves())) {
			return fmt.Errorf("%w: bitmap of %d bytes", errOther, len(b))
		}
		have[i] = b
	}
	w.mu.Lock()
	w.work.update(p, have, time.Now())
	w.changed()
	w.mu.Unlock()
	for _, o := range others {
		w.add(w.ctx, o)
	}
	return nil
}

// asked is a segment that a peer owes: next counts the leaves it has answered,
// open those not yet in place, refused or given up.
type asked struct{ seg, next, open int }

// read pipelines segments from a peer.
func (w *swarm) read(ctx context.Context, stream Bulk, p *source, fail context.CancelCauseFunc) error {
	r := &reader{w: w, p: p, fail: fail}
	defer r.abandon()
	return stream.Read(ctx, r.ask,
		func() []byte { return r.room(ctx) },
		func(data []byte) error { return r.recv(ctx, data) })
}

// reader is the state of one Read: what was asked, in order.
type reader struct {
	w    *swarm
	p    *source
	fail context.CancelCauseFunc

	mu   sync.Mutex
	owed []*asked
	buf  []byte
}

// ask waits for a segment to ask the peer for.
func (r *reader) ask(ctx context.Context) (entry cid.Cid, first, count int, ok bool) {
	for {
		r.w.mu.Lock()
		seg, found := r.w.work.pick(r.p, time.Now())
		wake := r.w.wake
		s := segment{}
		if found {
			s = r.w.work.segments[seg]
		}
		r.w.mu.Unlock()
		if found {
			r.mu.Lock()
			r.owed = append(r.owed, &asked{seg: seg, open: s.count})
			r.mu.Unlock()
			return r.w.entries[s.part], s.first, s.count, true
		}
		select {
		case <-wake:
		case <-r.w.whole:
			return cid.Undef, 0, 0, false
		case <-time.After(50 * time.Millisecond): // what pick says depends on time too
		case <-ctx.Done():
			return cid.Undef, 0, 0, false
		}
	}
}

// current is the leaf that the next frame must be.
func (r *reader) current() (a *asked, leaf int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.owed) == 0 {
		return nil, 0, false
	}
	a = r.owed[0]
	return a, r.w.work.segments[a.seg].first + a.next, true
}

func (r *reader) room(ctx context.Context) []byte {
	a, leaf, ok := r.current()
	if !ok {
		return nil
	}
	_, length := r.w.parts[r.w.work.segments[a.seg].part].tree.span(leaf)
	r.buf = r.w.room(ctx, length)
	return r.buf
}

// recv hands a leaf on to be verified, or notes that the peer lacks it.
func (r *reader) recv(ctx context.Context, data []byte) error {
	a, leaf, ok := r.current()
	if !ok {
		return fmt.Errorf("%w: leaf nobody asked for", ErrCorrupt)
	}
	buf := r.buf
	r.buf = nil
	if data == nil {
		r.w.give(buf)
		r.advance()
		r.w.settled(r.p, a, 1)
		return r.refused(a.seg, leaf)
	}
	select {
	case r.w.arrived <- arrival{from: r.p, asked: a, seg: a.seg, leaf: leaf, data: data, fail: r.fail}:
		r.advance()
		return nil
	case <-ctx.Done():
		r.w.give(buf)
		return ctx.Err()
	}
}

// refused notes a leaf that the peer said it had and did not give.
func (r *reader) refused(seg, leaf int) error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	part := r.w.work.segments[seg].part
	if b := r.p.have[part]; b != nil && leaf/8 < len(b) {
		b[leaf/8] &^= 1 << (leaf % 8)
		r.p.full = false
	}
	if r.p.refused++; r.p.refused > maxRefusals {
		return fmt.Errorf("%w: peer lacks what it announces", ErrCorrupt)
	}
	return nil
}

// advance moves on to the next frame expected.
func (r *reader) advance() {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.owed[0]
	if a.next++; a.next == r.w.work.segments[a.seg].count {
		r.owed = r.owed[1:]
	}
}

// abandon gives back what the peer still owes.
func (r *reader) abandon() {
	if r.buf != nil {
		r.w.give(r.buf)
		r.buf = nil
	}
	r.mu.Lock()
	owed := r.owed
	r.owed = nil
	r.mu.Unlock()
	for _, a := range owed {
		r.w.settled(r.p, a, r.w.work.segments[a.seg].count-a.next)
	}
}

// settled notes that n leaves of a segment asked of a peer need no more waiting
// for. Once none do, what is missing of it may be asked again.
func (w *swarm) settled(p *source, a *asked, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.open -= n; a.open == 0 {
		w.work.answered(p, a.seg)
		w.changed()
	}
}
