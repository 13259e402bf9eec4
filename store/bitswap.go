package store

import (
	"context"
	"errors"
	"time"

	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
)

// The sliding window: about 16 MiB of wants. More does not help, costs the memory
// of as many blocks, and above 1,024 wants boxo's servers drop them.
const (
	wantBatch    = 16
	wantInFlight = 4
	maxStalls    = 3 // sessions in a row that gave nothing
)

var errStalled = errors.New("no block in the stall time")

// bitswap gets leaves by bitswap sessions until none is missing. A session that
// gives nothing for the stall time is replaced by a new one.
func (w *swarm) bitswap(ctx context.Context) error {
	stalls := 0
	for ctx.Err() == nil {
		before := w.j.fetched.Load()
		err := w.session(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errStalled) {
			return err
		}
		if w.j.fetched.Load() > before {
			stalls = 0
		}
		if stalls++; stalls >= maxStalls {
			return w.errNobody()
		}
		w.j.s.log.Warn("bitswap stalled; starting a new session", "pack", w.j.root)
	}
	return nil
}

// session runs one bitswap session to its end.
func (w *swarm) session(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	w.mu.Lock()
	var from []peer.ID
	for p := range w.known {
		from = append(from, p)
	}
	w.mu.Unlock()
	ses, err := w.j.fetcher.Session(ctx, from)
	if err != nil {
		w.j.s.log.Debug("no bitswap session", "pack", w.j.root, "err", err)
		select {
		case <-time.After(w.j.s.cfg.Stall):
		case <-ctx.Done():
		}
		return errStalled
	}
	alive := make(chan struct{}, 1)
	group.Go(func() error { return w.watchdog(ctx, alive) })
	p := &source{full: true} // stands for whoever answers the session
	for range wantInFlight {
		group.Go(func() error {
			for {
				batch, ok := w.batch(ctx, p)
				if !ok {
					return nil
				}
				if err := w.want(ctx, ses, batch, alive); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// watchdog ends the session when no block comes.
func (w *swarm) watchdog(ctx context.Context, alive <-chan struct{}) error {
	timer := time.NewTimer(w.j.s.cfg.Stall)
	defer timer.Stop()
	for {
		select {
		case <-alive:
			timer.Reset(w.j.s.cfg.Stall)
		case <-timer.C:
			return errStalled
		case <-w.whole:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// leafRef is a leaf of a segment.
type leafRef struct{ seg, leaf int }

// wants is a batch of leaves, in file order.
type wants struct {
	keys   []cid.Cid
	leaves map[cid.Cid]leafRef
}

// batch takes leaves to want: whole segments, up to about wantBatch leaves.
func (w *swarm) batch(ctx context.Context, p *source) (wants, bool) {
	for {
		w.mu.Lock()
		out := wants{leaves: map[cid.Cid]leafRef{}}
		for len(out.keys) < wantBatch {
			seg, ok := w.work.inOrder()
			if !ok {
				break
			}
			s := &w.work.segments[seg]
			s.asks++
			s.asked = time.Now()
			p.asking += s.bytes
			for i := s.first; i < s.first+s.count; i++ {
				if part := w.parts[s.part]; !part.has(i) {
					c := part.leafCID(i)
					out.keys = append(out.keys, c)
					out.leaves[c] = leafRef{seg, i}
				}
			}
		}
		wake := w.wake
		w.mu.Unlock()
		if len(out.keys) > 0 {
			return out, true
		}
		select {
		case <-w.whole:
			return wants{}, false
		case <-wake:
		case <-ctx.Done():
			return wants{}, false
		}
	}
}

// want gets one batch. What did not come is given back.
func (w *swarm) want(ctx context.Context, ses exchange.Fetcher, batch wants, alive chan<- struct{}) error {
	p := &source{full: true}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		segs := map[int]bool{}
		for _, l := range batch.leaves {
			segs[l.seg] = true
		}
		for seg := range segs {
			w.work.answered(p, seg)
		}
		w.changed()
	}()
	got, err := ses.GetBlocks(ctx, batch.keys)
	if err != nil {
		return err
	}
	for {
		select {
		case b, ok := <-got:
			if !ok {
				return nil
			}
			l, wanted := batch.leaves[b.Cid()]
			if !wanted {
				continue
			}
			part := w.parts[w.work.segments[l.seg].part]
			// Bitswap names a block by hashing its bytes: it is the one wanted.
			added, err := part.putVerified(l.leaf, b.RawData())
			if errors.Is(err, ErrCorrupt) {
				w.j.s.log.Warn("a block has another length than declared", "pack", w.j.root, "err", err)
				continue
			}
			if err != nil {
				return err
			}
			select {
			case w.placed <- placed{part: part, leaf: l.leaf, data: b.RawData()}:
			case <-ctx.Done():
			}
			if added {
				w.landed(arrival{seg: l.seg, leaf: l.leaf})
			}
			select {
			case alive <- struct{}{}:
			default:
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
