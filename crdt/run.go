package crdt

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
)

const (
	maxServing     = 4                      // anti-entropy sessions served at once
	flushInterval  = 100 * time.Millisecond // group commit of others' statements
	lookInterval   = time.Second            // how often new peers are looked for
	aloneAfter     = 5 * time.Second        // nobody to synchronise with
	giveUpAfter    = 30 * time.Second       // nobody who answers
	frameTimeout   = 20 * time.Second
	sessionTimeout = 5 * time.Minute
	compactAbove   = 1 << 20 // bytes of log that are never worth compacting
	compactFactor  = 3       // and how much it grows before it is compacted
)

// Run replicates until ctx ends, then flushes, closes the Replica and returns
// nil. It returns an error when the log fails: the node must not go on then,
// because nothing can be acknowledged.
func (r *Replica) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.Close()) }()
	g, gctx := errgroup.WithContext(ctx)
	if r.cfg.Gossip != nil {
		for _, t := range topics() {
			if err := r.cfg.Gossip.Subscribe(gctx, t, r.validate); err != nil {
				return fmt.Errorf("subscribe to %s: %w", t, err)
			}
		}
	}
	if r.cfg.Streams != nil {
		r.cfg.Streams.Handle(aeProto, func(hctx context.Context, from peer.ID, c net.Conn) {
			stop := context.AfterFunc(gctx, func() { _ = c.Close() })
			defer stop()
			r.serve(hctx, from, c)
		})
		g.Go(func() error { return r.synchronise(gctx) })
	}
	g.Go(func() error { return r.maintain(gctx) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// maintain syncs what others said, compacts the log, and says this node's
// registers again when an earlier life of it turns up.
func (r *Replica) maintain(ctx context.Context) error {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.readopt:
			if err := r.readoptOwn(ctx); err != nil && !transient(err) {
				return fmt.Errorf("publish again: %w", err)
			}
		case <-tick.C:
			if err := r.log.flush(); err != nil {
				return err
			}
			if err := r.compact(); err != nil {
				return err
			}
		}
	}
}

// compact rewrites the log when superseded statements make up most of it.
func (r *Replica) compact() error {
	size := r.log.bytes()
	r.mu.Lock()
	defer r.mu.Unlock()
	if size < max(compactAbove, compactFactor*r.liveSize) {
		return nil
	}
	if err := r.log.compact(r.state.index().statements()); err != nil {
		return err
	}
	r.liveSize = r.log.bytes()
	r.unlogged = nil // the state had them
	return nil
}

// synchronise holds sessions: with every new peer at once and twice more within
// seconds, because gossip to it is still being set up; and with a random peer
// every SyncInterval, jittered by half.
func (r *Replica) synchronise(ctx context.Context) error {
	look := time.NewTicker(min(lookInterval, r.cfg.SyncInterval))
	defer look.Stop()
	var sessions errgroup.Group // their errors are counted, and end nothing
	sessions.SetLimit(maxServing)
	defer func() { _ = sessions.Wait() }()
	fresh := newcomers{}
	start := time.Now()
	next := start.Add(r.jitter())
	for {
		now := time.Now()
		peers := r.cfg.Streams.Peers()
		with := fresh.due(peers, now)
		if len(with) == 0 && len(peers) > 0 && now.After(next) {
			with = []peer.ID{peers[rand.IntN(len(peers))]}
			next = now.Add(r.jitter())
		}
		for _, p := range with {
			sessions.TryGo(func() error {
				if err := r.syncWith(ctx, p); err != nil {
					r.stats.failedSessions.Add(1)
					r.cfg.Logger.Debug("anti-entropy", "peer", p, "err", err)
					return nil
				}
				r.syncedOnce.Do(func() { close(r.synced) })
				return nil
			})
		}
		if wait := now.Sub(start); wait > giveUpAfter || (len(peers) == 0 && wait > aloneAfter) {
			r.syncedOnce.Do(func() { close(r.synced) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// newcomers says which peers are to be synchronised with now because they are
// new.
type newcomers map[peer.ID]*newcomer

type newcomer struct {
	sessions int
	next     time.Time
}

// newcomerDelays is how long after one session with a new peer the next follows.
var newcomerDelays = []time.Duration{2 * time.Second, 5 * time.Second}

func (n newcomers) due(peers []peer.ID, now time.Time) []peer.ID {
	for p := range n {
		if !slices.Contains(peers, p) {
			delete(n, p)
		}
	}
	var out []peer.ID
	for _, p := range peers {
		c := n[p]
		if c == nil {
			c = &newcomer{next: now}
			n[p] = c
		}
		if c.sessions > len(newcomerDelays) || now.Before(c.next) {
			continue
		}
		if c.sessions < len(newcomerDelays) {
			c.next = now.Add(newcomerDelays[c.sessions])
		}
		c.sessions++
		out = append(out, p)
	}
	return out
}

func (r *Replica) jitter() time.Duration {
	return r.cfg.SyncInterval/2 + rand.N(r.cfg.SyncInterval)
}

// syncWith holds sessions with a peer until a session finds nothing more.
func (r *Replica) syncWith(ctx context.Context, p peer.ID) error {
	const most = 64
	for range most {
		again, err := r.session(ctx, p)
		if err != nil || !again {
			return err
		}
	}
	return nil
}

func (r *Replica) session(ctx context.Context, p peer.ID) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	octx, ocancel := context.WithTimeout(ctx, frameTimeout)
	defer ocancel()
	c, err := r.cfg.Streams.Open(octx, p, aeProto)
	if err != nil {
		return false, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	s := r.newSession(c)
	again, err = s.initiate()
	r.account(s, err)
	return again, errors.Join(err, c.Close())
}

// serve answers a peer's session.
func (r *Replica) serve(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	select {
	case r.serving <- struct{}{}:
		defer func() { <-r.serving }()
	default:
		return // busy: the peer tries somebody else
	}
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	s := r.newSession(c)
	err := s.respond()
	r.account(s, err)
	if err != nil {
		r.stats.failedSessions.Add(1)
		r.cfg.Logger.Debug("anti-entropy", "peer", from, "err", err)
	}
}

func (r *Replica) account(s *aeSession, err error) {
	r.stats.sent.Add(uint64(s.sent))
	r.stats.received.Add(uint64(s.received))
	if err == nil {
		r.stats.sessions.Add(1)
	}
}

func (r *Replica) newSession(c net.Conn) *aeSession {
	r.mu.Lock()
	idx := r.state.index()
	r.mu.Unlock()
	return &aeSession{
		rw: c, idx: idx,
		apply: func(raws [][]byte) error {
			// The first acceptance of an invite was decided by whoever relays it.
			if _, err := r.merge(raws, time.Time{}); err != nil && !benign(err) {
				return fmt.Errorf("%w: %w", errAEProtocol, err)
			}
			return nil
		},
		touch: func() { _ = c.SetDeadline(time.Now().Add(frameTimeout)) }, // a failure shows in the I/O itself
	}
}
