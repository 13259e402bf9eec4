package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

const (
	// Lease is how long a pack that somebody had fetched here is kept without an
	// instance that uses it: long enough to sign one.
	Lease = 30 * time.Minute
	// collectEvery is how often the store is collected; the first time after as
	// long, so a restart does not collect what it has not looked at yet.
	collectEvery = 10 * time.Minute
	// A failed fetch is tried again after retryMin, doubling up to retryMax.
	retryMin = time.Second
	retryMax = time.Minute
	// A pack that is bad itself is fetched whole before that shows, and stays bad:
	// only what this machine may have done to it is a reason to try again.
	retryBad = 6 * time.Hour
	// badAttempts are the failures that one of a bad pack counts as, enough for
	// plan to give the slot up at once.
	badAttempts = 16
)

// packs fetches what the plan wants, a few at a time, and lets the store collect
// what nobody wants.
type packs struct {
	content Content
	keeper  Keeper
	now     func() time.Duration // since boot
	log     *slog.Logger
	woke    func() time.Duration // of a Vigil
	changed func()
	work    chan struct{} // something to fetch, capacity 1
	slots   chan struct{} // one token per fetch in progress

	mu       sync.Mutex
	complete map[string]bool
	queue    []string // wanted, most urgent first
	keep     []string
	whole    bool          // keep names all that is needed here
	asOf     time.Duration // what woke said when keep was decided
	sources  map[string][]peer.ID
	state    map[string]*fetchState
	bytes    map[string]int64         // of kept packs, what the loop had to fetch; while it fetches, at most so many
	leases   map[string]time.Duration // until
}

// fetchState is what is known of a pack that was not complete.
type fetchState struct {
	running  bool
	attempts int
	reason   string
	next     time.Duration
}

func newPacks(cfg Config, woke func() time.Duration, changed func()) *packs {
	return &packs{
		content: cfg.Content, keeper: cfg.Keeper, now: cfg.Now, log: cfg.Logger, woke: woke, changed: changed,
		work: make(chan struct{}, 1), slots: make(chan struct{}, Fetching),
		complete: map[string]bool{}, state: map[string]*fetchState{}, bytes: map[string]int64{}, leases: map[string]time.Duration{},
	}
}

// status is what plan needs to know of these packs.
func (p *packs) status(cids []string) map[string]plan.PackStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]plan.PackStatus{}
	for _, c := range cids {
		s := plan.PackStatus{Bytes: p.bytes[c]}
		if f := p.state[c]; f != nil {
			s.Reason, s.Attempts = f.reason, f.attempts
			switch {
			case f.running:
				s.State = plan.Fetching
			case f.attempts > 0:
				s.State = plan.Failed
			}
		}
		if p.complete[c] {
			s = plan.PackStatus{State: plan.Complete, Bytes: p.bytes[c]}
		}
		out[c] = s
	}
	return out
}

// holds lists what is complete here, sorted.
func (p *packs) holds() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.complete))
}

// want replaces what is to be fetched and kept. whole says that keep names all
// that is needed here; before the first want it does not.
func (p *packs) want(fetch, keep []string, w plan.World, whole bool) {
	sources := map[string][]peer.ID{}
	for _, c := range fetch {
		sources[c] = holdersOf(w, c)
	}
	p.mu.Lock()
	p.queue, p.keep, p.sources, p.whole, p.asOf = fetch, keep, sources, whole, p.woke()
	maps.DeleteFunc(p.bytes, func(c string, _ int64) bool { return !slices.Contains(keep, c) })
	p.mu.Unlock()
	p.poke()
}

func (p *packs) poke() {
	select {
	case p.work <- struct{}{}:
	default:
	}
}

// holdersOf are the live nodes that say they hold a pack, as peers.
func holdersOf(w plan.World, pack string) []peer.ID {
	var out []peer.ID
	for i := range w.Nodes {
		n := &w.Nodes[i]
		if _, dead := w.Dead[n.Key]; !dead && slices.Contains(n.Holds, pack) {
			out = append(out, peer.ID(n.Key.PeerID()))
		}
	}
	return out
}

// run fetches and collects until ctx ends.
func (p *packs) run(ctx context.Context) error {
	p.scan(ctx)
	collect := time.NewTicker(collectEvery)
	defer collect.Stop()
	retry := time.NewTimer(retryMax)
	defer retry.Stop()
	var fetches sync.WaitGroup
	defer fetches.Wait()
	for {
		for {
			c, wait := p.next()
			if c == "" {
				retry.Reset(wait)
				break
			}
			fetches.Add(1)
			go func() {
				defer fetches.Done()
				p.fetch(ctx, c)
			}()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.work:
		case <-retry.C:
		case <-collect.C:
			p.collect(ctx)
		}
	}
}

// scan looks what the store holds.
func (p *packs) scan(ctx context.Context) {
	list, err := p.content.List(ctx)
	if err != nil {
		p.log.Error("list packs", "err", err)
		return
	}
	complete := map[string]bool{}
	for _, i := range list {
		if i.Complete {
			complete[i.CID.String()] = true
		}
	}
	p.mu.Lock()
	same := maps.Equal(complete, p.complete)
	p.complete = complete
	p.mu.Unlock()
	if !same {
		p.changed()
	}
}

// next takes a pack to fetch now off the queue; else it says how long nothing
// will be due.
func (p *packs) next() (string, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, wait := p.now(), retryMax
	for _, c := range p.queue {
		f := p.state[c]
		if f == nil {
			f = &fetchState{}
			p.state[c] = f
		}
		if f.running || p.complete[c] {
			continue
		}
		if now < f.next {
			wait = min(wait, f.next-now)
			continue
		}
		select {
		case p.slots <- struct{}{}:
			f.running = true
			return c, 0
		default:
			return "", retryMax // a fetch that ends pokes
		}
	}
	return "", wait
}

// fetch makes one attempt for the loop.
func (p *packs) fetch(ctx context.Context, c string) {
	defer p.poke()
	defer func() { <-p.slots }()
	p.mu.Lock()
	from := p.sources[c]
	p.mu.Unlock()
	id, err := cid.Decode(c)
	if err == nil {
		p.log.Info("fetching", "pack", c, "holders", len(from))
		err = p.get(ctx, id, from, func(s store.Progress) { p.measure(c, s) })
	} else {
		err = fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	}
	p.mu.Lock()
	if err != nil {
		p.state[c].failed(err, p.now())
	} else {
		delete(p.state, c)
	}
	p.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		p.log.Warn("fetch failed; will try again", "pack", c, "err", err)
		p.changed()
	default:
		p.log.Info("fetched", "pack", c)
		p.scan(ctx)
	}
}

// measure notes how many bytes of a pack must come here.
func (p *packs) measure(c string, s store.Progress) {
	if s.Total == 0 {
		return
	}
	p.mu.Lock()
	news := p.bytes[c] == 0
	p.bytes[c] = max(s.Total-s.Local, 1)
	p.mu.Unlock()
	if news {
		p.changed()
	}
}

// failed notes the end of an attempt.
func (f *fetchState) failed(err error, now time.Duration) {
	f.running, f.reason = false, err.Error()
	f.attempts++
	pause := min(retryMin<<min(f.attempts-1, 10), retryMax)
	if bad(err) {
		f.attempts, pause = max(f.attempts, badAttempts), retryBad
	}
	f.next = now + pause
}

// bad says that a fetch failed by what the pack itself is, not by what its peers
// are: those of which each gave something wrong end in ErrNoPeer. What is too large
// was signed so.
func bad(err error) bool {
	return errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrCorrupt) && !errors.Is(err, store.ErrNoPeer)
}

// get fetches without a pin: what is kept is decided by collect.
func (p *packs) get(ctx context.Context, c cid.Cid, from []peer.ID, progress func(store.Progress)) error {
	return p.keeper.Fetch(ctx, c, store.FetchOptions{From: from, Progress: progress, NoPin: true})
}

// fetchNow fetches for somebody who asks and leases the pack.
func (p *packs) fetchNow(ctx context.Context, c cid.Cid, from []peer.ID, progress func(store.Progress)) error {
	if err := store.CheckCID(c); err != nil {
		return err
	}
	p.mu.Lock()
	p.leases[c.String()] = p.now() + Lease
	p.mu.Unlock()
	if err := p.get(ctx, c, from, progress); err != nil {
		return err
	}
	p.mu.Lock()
	p.leases[c.String()] = p.now() + Lease
	p.mu.Unlock()
	p.scan(ctx)
	return nil
}

// collect lets the store drop what is neither wanted, leased nor pinned; not after
// a sleep, before it is decided again what is wanted.
func (p *packs) collect(ctx context.Context) {
	p.mu.Lock()
	whole := p.whole && p.asOf == p.woke()
	p.mu.Unlock()
	if !whole {
		return
	}
	freed, err := p.keeper.GC(ctx, p.kept)
	if err != nil {
		p.log.Warn("collect packs", "err", err)
		return
	}
	if freed > 0 {
		p.log.Info("collected packs", "bytes", freed)
	}
	p.scan(ctx)
}

func (p *packs) kept() []cid.Cid {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	words := slices.Clone(p.keep)
	for c, until := range p.leases {
		if now > until {
			delete(p.leases, c)
		} else {
			words = append(words, c)
		}
	}
	var out []cid.Cid
	for _, w := range words {
		if c, err := cid.Decode(w); err == nil && store.CheckCID(c) == nil {
			out = append(out, c)
		}
	}
	return out
}

// PeerOf is a node's libp2p identity.
func PeerOf(k stmt.Key) peer.ID { return peer.ID(k.PeerID()) }

// KeyOf is the node of a libp2p identity.
func KeyOf(p peer.ID) (stmt.Key, error) { return stmt.KeyOfPeerID(string(p)) }

var _ State = (*crdt.Replica)(nil)
