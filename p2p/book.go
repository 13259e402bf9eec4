package p2p

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// wantPeers is how many peers a node keeps connected if it can. A swarm of
	// up to that size is a full mesh.
	wantPeers = 16
	// maxBook bounds the remembered peers, maxAddrs the addresses of each.
	maxBook  = 256
	maxAddrs = 8
	// maxDials bounds the dials of the book that run at once.
	maxDials = 4
	// maxBlind is how often a peer that was never met is tried.
	maxBlind = 5
	// forgetAfter drops a peer that has not been seen for so long.
	forgetAfter = 14 * 24 * time.Hour
	// staleAfter is when a lost peer is tried ten times less often, unless
	// nobody is connected.
	staleAfter = time.Hour
)

// book is the list of peers worth dialling, and decides which to dial when. It
// is pure: time and chance are handed in, and it is not safe for concurrent use.
type book struct {
	self    peer.ID
	tune    tuning
	rng     *rand.Rand
	entries map[peer.ID]*entry
	explore time.Time // when a peer beyond wantPeers is tried next
	dirty   bool      // what is remembered differs from what was saved
}

type entry struct {
	id        peer.ID
	addrs     []ma.Multiaddr
	boot      bool      // configured: never forgotten
	met       bool      // was admitted once, so it is remembered
	seen      time.Time // when it was last connected
	connected bool
	dialing   bool
	fails     int
	next      time.Time // not dialled before
}

func newBook(self peer.ID, tune tuning, rng *rand.Rand, boot []peer.AddrInfo) *book {
	b := &book{self: self, tune: tune, rng: rng, entries: make(map[peer.ID]*entry)}
	for _, pi := range boot {
		if e := b.add(pi); e != nil {
			e.boot = true
		}
	}
	return b
}

// offer tells of a peer that might exist, for example found on the LAN.
func (b *book) offer(pi peer.AddrInfo) { b.add(pi) }

func (b *book) add(pi peer.AddrInfo) *entry {
	if pi.ID == b.self {
		return nil
	}
	e := b.entries[pi.ID]
	if e == nil {
		if len(b.entries) >= maxBook && !b.evict() {
			return nil
		}
		e = &entry{id: pi.ID}
		b.entries[pi.ID] = e
	}
	e.merge(pi.Addrs)
	return e
}

// merge puts new addresses first and keeps the newest maxAddrs.
func (e *entry) merge(addrs []ma.Multiaddr) bool {
	if len(addrs) > maxAddrs {
		addrs = addrs[:maxAddrs]
	}
	all := slices.Clone(addrs)
	for _, a := range e.addrs {
		if !ma.Contains(all, a) {
			all = append(all, a)
		}
	}
	if e.boot { // configured addresses are at the end, and must stay
		all = keepEnds(all, maxAddrs)
	} else if len(all) > maxAddrs {
		all = all[:maxAddrs]
	}
	changed := !slices.EqualFunc(all, e.addrs, ma.Multiaddr.Equal)
	e.addrs = all
	return changed
}

func keepEnds(all []ma.Multiaddr, limit int) []ma.Multiaddr {
	if len(all) <= limit {
		return all
	}
	return append(slices.Clone(all[:limit/2]), all[len(all)-limit/2:]...)
}

// evict makes room: the peers never met go first, then the longest unseen.
func (b *book) evict() bool {
	var worst *entry
	for _, e := range b.entries {
		if e.boot || e.connected || e.dialing {
			continue
		}
		if worst == nil || cmpWorth(e, worst) < 0 {
			worst = e
		}
	}
	if worst == nil {
		return false
	}
	b.remove(worst)
	return true
}

func cmpWorth(a, b *entry) int {
	if a.met != b.met {
		if a.met {
			return 1
		}
		return -1
	}
	return cmp.Or(a.seen.Compare(b.seen), cmp.Compare(a.id, b.id))
}

func (b *book) remove(e *entry) {
	b.dirty = b.dirty || e.met
	delete(b.entries, e.id)
}

// up records that a peer is admitted, with the addresses it listens on.
func (b *book) up(pi peer.AddrInfo, now time.Time) {
	e := b.add(pi)
	if e == nil {
		return
	}
	b.dirty = b.dirty || !e.met
	e.met, e.connected, e.seen, e.fails = true, true, now, 0
}

// learn records the addresses of a connected peer; others are ignored.
func (b *book) learn(pi peer.AddrInfo) {
	if e := b.entries[pi.ID]; e != nil && e.connected {
		b.dirty = e.merge(pi.Addrs) || b.dirty
	}
}

// down records that a peer's last connection closed. It is due again at once,
// give or take, for it may be the network that failed and not the peer.
func (b *book) down(p peer.ID, now time.Time) {
	if e := b.entries[p]; e != nil && e.connected {
		e.connected, e.seen, e.fails = false, now, 0
		e.next = now.Add(b.jitter(b.tune.backoffMin))
	}
}

// failed records that a dial ended without admission.
func (b *book) failed(p peer.ID, now time.Time, refused bool) {
	e := b.entries[p]
	if e == nil {
		return
	}
	e.dialing = false
	if e.connected { // it connected to us meanwhile
		return
	}
	e.fails++
	if refused {
		e.fails += 3 // it will hardly change its mind in a second
	}
	if !e.boot && (!e.met && e.fails >= maxBlind || e.met && now.Sub(e.seen) > forgetAfter) {
		b.remove(e)
		return
	}
	wait := b.tune.backoffMin << min(e.fails, 16)
	limit := b.tune.backoffMax
	if !e.boot && now.Sub(e.seen) > staleAfter && b.connected() > 0 {
		limit *= 10
	}
	e.next = now.Add(b.jitter(min(wait, limit)))
}

// hurry makes all who are not connected due at once, and of those known as peers
// forgets how often they were tried.
func (b *book) hurry(now time.Time) {
	for _, e := range b.entries {
		if e.connected {
			continue
		}
		if e.next = now; e.boot || e.met {
			e.fails = 0
		}
	}
}

// dialed records that a dial succeeded.
func (b *book) dialed(p peer.ID) {
	if e := b.entries[p]; e != nil {
		e.dialing = false
	}
}

// jitter spreads d over [d/2, 3d/2).
func (b *book) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(b.rng.Int64N(int64(d)+1))
}

func (b *book) connected() (n int) {
	for _, e := range b.entries {
		if e.connected {
			n++
		}
	}
	return n
}

// plan returns the peers to dial now, marked as being dialled, and when to ask
// again if nothing happens before (zero: never).
func (b *book) plan(now time.Time) (dial []peer.AddrInfo, wake time.Time) {
	var idle []*entry
	connected, dialing := 0, 0
	for _, e := range b.entries {
		if e.dialing {
			dialing++
		}
		switch {
		case e.connected:
			connected++
		case !e.dialing && len(e.addrs) > 0:
			idle = append(idle, e)
		}
	}
	if len(idle) == 0 {
		return nil, time.Time{}
	}
	slices.SortFunc(idle, func(x, y *entry) int {
		return cmp.Or(x.next.Compare(y.next), -cmpWorth(x, y))
	})
	room := min(maxDials, wantPeers-connected) - dialing
	switch {
	case connected >= wantPeers && dialing == 0:
		return b.planExplore(now, idle)
	case room <= 0:
		return nil, time.Time{} // the end of a dial asks again
	}
	due := 0
	for due < len(idle) && !idle[due].next.After(now) {
		due++
	}
	ready := idle[:due]
	// Of those due, the configured first, then the ones seen last.
	slices.SortFunc(ready, func(x, y *entry) int {
		if x.boot != y.boot {
			if x.boot {
				return -1
			}
			return 1
		}
		return -cmpWorth(x, y)
	})
	for _, e := range ready[:min(room, due)] {
		e.dialing = true
		dial = append(dial, peer.AddrInfo{ID: e.id, Addrs: slices.Clone(e.addrs)})
	}
	if due < len(idle) {
		wake = idle[due].next
	}
	return dial, wake
}

// planExplore tries one of the peers a well connected node does not need, now
// and then: both halves of a partition may be well connected.
func (b *book) planExplore(now time.Time, idle []*entry) (dial []peer.AddrInfo, wake time.Time) {
	if b.explore.IsZero() {
		b.explore = now.Add(b.jitter(b.tune.explore))
	}
	if now.Before(b.explore) {
		return nil, b.explore
	}
	b.explore = now.Add(b.jitter(b.tune.explore))
	e := idle[b.rng.IntN(len(idle))]
	e.dialing = true
	return []peer.AddrInfo{{ID: e.id, Addrs: slices.Clone(e.addrs)}}, b.explore
}
