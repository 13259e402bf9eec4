package crdt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/crdt/stmt"
)

const (
	flushInterval = 100 * time.Millisecond // group commit of others' statements
	tidyInterval  = 30 * time.Second       // between this node's claims said anew and the floor below them
	lookInterval  = time.Second            // how often new peers are looked for
	aloneAfter    = 5 * time.Second        // nobody to synchronise with
	giveUpAfter   = 30 * time.Second       // nobody who answers
	sessionRate   = 0.5                    // sessions a second that one peer may begin
	sessionBurst  = 64                     // a peer far behind needs one after the other
)

// Run replicates until ctx ends, then flushes, closes the Replica and returns
// nil. It returns an error when the log fails: the node must not go on then,
// because nothing can be acknowledged.
func (r *Replica) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.Close()) }()
	g, gctx := errgroup.WithContext(ctx)
	if r.cfg.Gossip != nil {
		for _, t := range topics() {
			if err := r.cfg.Gossip.Subscribe(gctx, t, r.validate); ctx.Err() != nil {
				return nil
			} else if err != nil {
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
	tick, tidy := time.NewTicker(flushInterval), time.NewTicker(tidyInterval)
	defer tick.Stop()
	defer tidy.Stop()
	readopt, retry := false, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.readopt:
			readopt = true
		case <-tidy.C:
			r.mu.Lock()
			r.flushOmitted()
			r.flushDoubled()
			r.mu.Unlock()
			if err := r.tidyOwn(ctx); err != nil && !transient(err) { // a failed log ends below
				r.cfg.Logger.Warn("raise the floor of this node's claims", "err", err)
			}
		case now := <-tick.C:
			if readopt && now.After(retry) {
				err := r.readoptOwn(ctx)
				if readopt = err != nil && !transient(err); readopt { // a failed log ends below
					r.cfg.Logger.Warn("publish again", "err", err)
					retry = now.Add(retryRewrite)
				}
			}
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
}

// synchronise holds sessions until ctx ends, all of them anew when what is held is
// not recent enough any more: those that slept too would keep their peers from new
// ones.
func (r *Replica) synchronise(ctx context.Context) error {
	began := r.cfg.Boot()
	for ctx.Err() == nil {
		r.holdSessions(ctx, began)
	}
	return nil
}

// holdSessions holds sessions with members: with every new one at once and twice
// more within seconds, because gossip to it is still being set up; and with a
// random one every SyncInterval, jittered by half. There is one session at a time
// with a peer, and new peers leave room for the others, so that slow and hostile
// ones cannot keep this node from those that answer. It returns when ctx ends or
// somebody waits for more recent than what is held; Run connected at began.
func (r *Replica) holdSessions(ctx context.Context, began time.Duration) {
	look := time.NewTicker(min(lookInterval, r.cfg.SyncInterval))
	defer look.Stop()
	var sessions errgroup.Group // their errors are counted, and end nothing
	defer func() { _ = sessions.Wait() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := func(p peer.ID, most int) bool {
		ctx, cancel := context.WithCancel(ctx)
		d := r.asking.begin(p, most, cancel)
		if d == nil {
			cancel()
			return false
		}
		sessions.Go(func() error {
			defer r.asking.end(d)
			r.ask(ctx, p, d)
			return nil
		})
		return true
	}
	fresh := newcomers{}
	next := time.Now().Add(r.jitter())
	for {
		now := time.Now()
		peers := slices.DeleteFunc(slices.Clone(r.cfg.Streams.Peers()), func(p peer.ID) bool { return !r.isPeer(p) })
		for _, p := range fresh.due(peers, now) {
			if start(p, maxFresh) {
				fresh.started(p, now)
			}
		}
		if len(peers) > 0 && now.After(next) && start(peers[rand.IntN(len(peers))], maxSessions) {
			next = now.Add(r.jitter())
		}
		if since, waits := r.fresh.longest(); waits && r.givesUp(len(peers), r.cfg.Boot()-max(began, since)) {
			r.fresh.reach(since)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.fresh.resync:
			return
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

// due returns the new peers whose turn it is, those with the fewest sessions
// first.
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
		if c.sessions <= len(newcomerDelays) && !now.Before(c.next) {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b peer.ID) int { return cmp.Compare(n[a].sessions, n[b].sessions) })
	return out
}

// started counts a session with a new peer.
func (n newcomers) started(p peer.ID, now time.Time) {
	c := n[p]
	if c.sessions < len(newcomerDelays) {
		c.next = now.Add(newcomerDelays[c.sessions])
	}
	c.sessions++
}

// isPeer says whether p is a member node now, so that its word counts; admission
// was judged when it connected.
func (r *Replica) isPeer(p peer.ID) bool {
	key, err := stmt.KeyOfPeerID(string(p))
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.members.has(r.cfg.Root, key, stmt.RoleNode)
}

// Fingerprint is [State.Fingerprint] of what is held now.
func (r *Replica) Fingerprint() stmt.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Fingerprint()
}

// Held is [State.Held] of what is held now.
func (r *Replica) Held() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Held()
}

func (r *Replica) jitter() time.Duration {
	return r.cfg.SyncInterval/2 + rand.N(r.cfg.SyncInterval)
}

// ask holds sessions with a peer and counts how they ended.
func (r *Replica) ask(ctx context.Context, p peer.ID, d *dialogue) {
	began := r.cfg.Boot()
	if err := r.syncWith(ctx, p, d); err != nil {
		r.failed(p, err)
		return
	}
	r.recovered()
	r.fresh.reach(began)
}

// givesUp says whether to go on without having synchronised, after such a wait
// with so many peers.
func (r *Replica) givesUp(peers int, wait time.Duration) bool {
	// Who has had peers in this run may only have lost the connections to them.
	alone := peers == 0 && wait > aloneAfter && r.stats.sessions.Load() == 0
	return !r.mustSync.Load() && (alone || wait > giveUpAfter)
}

// syncWith holds sessions with a peer until one finds nothing more, or brings
// nothing.
func (r *Replica) syncWith(ctx context.Context, p peer.ID, d *dialogue) error {
	for {
		again, err := r.session(ctx, p, d)
		if err != nil || !again {
			return err
		}
	}
}

// session holds one session. again says that it brought something, and that
// there is more.
func (r *Replica) session(ctx context.Context, p peer.ID, d *dialogue) (again bool, err error) {
	octx, ocancel := context.WithTimeout(ctx, frameTimeout)
	defer ocancel()
	c, err := r.cfg.Streams.Open(octx, p, aeProto)
	if err != nil {
		return false, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	s := r.newSession(c, d)
	again, err = s.initiate()
	d.carry(s.moved)
	r.account(p, s, err)
	return again && s.news > 0, errors.Join(err, c.Close())
}

// serve answers a peer's session, if the peer is a member still.
func (r *Replica) serve(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	if !r.isPeer(from) {
		r.refuse(from, RefusedSender, ErrNotMember)
		return
	}
	if !r.limits.sessions.take(from, 1, r.cfg.Now()) {
		r.refuse(from, RefusedRate, fmt.Errorf("%w: sessions", errRate))
		return
	}
	d := r.serving.begin(from, maxSessions, func() { _ = c.Close() })
	if d == nil {
		return // busy: the peer tries somebody else
	}
	defer r.serving.end(d)
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	s := r.newSession(c, d)
	err := s.respond()
	r.account(from, s, err)
	if err != nil {
		r.failed(from, err)
	}
}

// failed counts a session that ended badly, and names a peer whose fault it was.
func (r *Replica) failed(p peer.ID, err error) {
	r.stats.failedSessions.Add(1)
	if errors.Is(err, errAEProtocol) {
		r.refuse(p, RefusedProtocol, err)
		return
	}
	r.cfg.Logger.Debug("anti-entropy", "peer", p, "err", err)
}

func (r *Replica) account(p peer.ID, s *aeSession, err error) {
	r.stats.sent.Add(uint64(s.sent))
	r.stats.received.Add(uint64(s.received))
	if err == nil {
		r.stats.sessions.Add(1)
		r.compared.note(p, s.sent+s.received > 0, r.cfg.Boot())
	}
}

func (r *Replica) newSession(c net.Conn, d *dialogue) *aeSession {
	r.mu.Lock()
	if key, err := stmt.KeyOfPeerID(string(d.peer)); err == nil {
		r.remember(key)
	}
	idx := r.state.index()
	r.mu.Unlock()
	s := &aeSession{
		rw: c, idx: idx,
		touch: func(moved int) { _ = c.SetDeadline(d.deadline(moved, time.Now())) }, // a failure shows in the I/O itself
	}
	said := registersSaid{}
	s.apply = func(raws [][]byte) error {
		// The first acceptance of an invite was decided by whoever relays it.
		news, err := r.merge(d.peer, raws, time.Time{})
		s.news += len(news)
		r.asking.credit(d, len(news))
		if err != nil && !benign(err) {
			return fmt.Errorf("%w: %w", errAEProtocol, err)
		}
		return said.note(raws, r.cfg.Network)
	}
	return s
}

// registersSaid is which statement a peer has sent for each register in a session.
// It holds one of each, and so sends one.
type registersSaid map[shortID]stmt.ID

// note is an error when raws have another statement for a register than came
// before.
func (said registersSaid) note(raws [][]byte, network stmt.NetworkID) error {
	for _, raw := range raws {
		st, err := stmt.Peek(raw, network)
		if err != nil {
			continue // merge has judged it
		}
		k, ok := registerName(st)
		if old, have := said[k]; ok && have && old != st.ID {
			return fmt.Errorf("%w: two statements for one %s register of %s", errAEProtocol, st.Kind, st.Author)
		}
		if ok {
			said[k] = st.ID
		}
	}
	return nil
}

// registerName is a hash of the register that a statement is for, and whether it is
// for one.
func registerName(st *stmt.Statement) (k shortID, ok bool) {
	h := sha256.New()
	h.Write([]byte(st.Kind + "\x00"))
	h.Write(st.Author[:])
	switch st.Kind {
	case stmt.KindNode:
	case stmt.KindClaim:
		b, err := decodeClaim(st)
		if err != nil {
			return k, false
		}
		h.Write(b.Instance[:])
		h.Write(b.Owner[:])
		h.Write([]byte{byte(b.Slot)})
	case stmt.KindSecret:
		b, err := decodeSecret(st)
		if err != nil {
			return k, false
		}
		id := b.instance(st.Author)
		h.Write(id[:])
		h.Write([]byte(b.Name))
	case stmt.KindBase:
		var b stmt.BaseBody
		if stmt.Unmarshal(st.Body, &b) != nil {
			return k, false
		}
		h.Write([]byte(b.Name))
	default:
		return k, false
	}
	return shortID(h.Sum(nil)[:len(k)]), true
}
