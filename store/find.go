package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// hedge is how long one peer may think before the next is asked as well.
const hedge = 500 * time.Millisecond

// describe gets the pack's nodes: from this store if they are all here, else
// from the first peer that gives them whole and right.
func (j *job) describe(ctx context.Context) (*description, *opening, error) {
	d := newDescription(j.root, j.s.cfg.MaxPack)
	whole, err := j.s.describeLocal(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	if whole {
		return d, nil, nil
	}
	if j.fetcher == nil {
		return nil, nil, fmt.Errorf("%w: there is no network", ErrNoPeer)
	}
	return j.describeRemote(ctx)
}

// describeLocal says false when something is not here, or not right, and must
// come from a peer.
func (s *Store) describeLocal(ctx context.Context, d *description) (bool, error) {
	for {
		w, ok := d.next()
		if !ok {
			return true, nil
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		data, err := s.described(w)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if err := d.add(data); err != nil {
			return false, err
		}
	}
}

// opening is a stream that described the pack, with what the peer said it has.
type opening struct {
	from   peer.ID
	stream Bulk
	have   map[cid.Cid][]byte
	others []peer.ID
}

type answer struct {
	opening
	d   *description
	err error
}

// describeRemote asks the peers named by callers, then the ones the network
// finds; a slow one does not hold up the next.
func (j *job) describeRemote(ctx context.Context) (*description, *opening, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan []peer.ID, 1)
	go func() {
		peers, err := j.fetcher.Providers(ctx, j.root)
		if err != nil {
			j.s.log.Debug("no providers", "pack", j.root, "err", err)
		}
		found <- peers
	}()
	queue := j.known()
	asked := map[peer.ID]bool{}
	answers := make(chan answer)
	running, searching := 0, true
	timer := time.NewTimer(0)
	defer timer.Stop()
	var reasons []error
	for {
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case peers := <-found:
			searching = false
			queue = append(queue, peers...)
			timer.Reset(0)
		case a := <-answers:
			running--
			if a.err == nil {
				return a.d, &a.opening, nil
			}
			reasons = append(reasons, fmt.Errorf("peer %s: %w", a.from, a.err))
			timer.Reset(0)
		case <-timer.C:
			for len(queue) > 0 && asked[queue[0]] {
				queue = queue[1:]
			}
			if len(queue) > 0 {
				p := queue[0]
				queue, asked[p] = queue[1:], true
				running++
				go func() {
					a := j.describeFrom(ctx, p)
					select {
					case answers <- a:
					case <-ctx.Done():
						if a.stream != nil {
							a.stream.Close()
						}
					}
				}()
				timer.Reset(hedge)
			}
		}
		if running == 0 && !searching && allAsked(queue, asked) {
			return nil, nil, errors.Join(ErrNoPeer, errors.Join(reasons...))
		}
	}
}

func allAsked(queue []peer.ID, asked map[peer.ID]bool) bool {
	for _, p := range queue {
		if !asked[p] {
			return false
		}
	}
	return true
}

// describeFrom asks one peer. The stream stays open for its leaves: it outlives
// ctx, so each use brings its own.
func (j *job) describeFrom(ctx context.Context, p peer.ID) (a answer) {
	a.from = p
	b, err := j.fetcher.Bulk(ctx, p)
	if err != nil {
		a.err = err
		return a
	}
	a.d = newDescription(j.root, j.s.cfg.MaxPack)
	have, others, err := b.Describe(ctx, j.root, func(data []byte) (bool, error) {
		if err := a.d.add(data); err != nil {
			return false, err
		}
		_, more := a.d.next()
		return !more, nil
	})
	if _, more := a.d.next(); err == nil && more {
		err = fmt.Errorf("%w: it does not have all of the pack's nodes", ErrIncomplete)
	}
	if err != nil {
		j.blame(p, err)
		a.err = errors.Join(err, b.Close())
		return a
	}
	a.stream, a.others, a.have = b, others, map[cid.Cid][]byte{}
	for i, e := range a.d.entries {
		if i < len(have) {
			a.have[e.Root] = have[i]
		}
	}
	return a
}
