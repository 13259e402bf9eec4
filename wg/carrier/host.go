package carrier

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// host is a session and its streams. Its methods may be called by several
// goroutines.
type host struct {
	id    peer.ID
	route atomic.Pointer[route] // never nil
	used  atomic.Int64          // time.Duration

	mu      sync.Mutex
	sess    session
	tunnels []*tunnel // latest last
	waiting [][]byte  // for the first tunnel
	opening bool
	failed  int           // openings in a row
	next    time.Duration // no opening before
}

// maxWaiting is how many datagrams wait for a stream to be opened.
const maxWaiting = 64

func newHost(id peer.ID, ours secret, now time.Duration) *host {
	h := &host{id: id, sess: session{ours: ours, used: now}}
	h.used.Store(int64(now))
	h.route.Store(&route{stream: true})
	return h
}

func (h *host) touch(now time.Duration) { h.used.Store(int64(now)) }

// queue gives datagrams to the stream; false: there is none yet.
func (h *host) queue(bufs [][]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range bufs {
		b = slices.Clone(b)
		if n := len(h.tunnels); n > 0 {
			h.tunnels[n-1].offer(b)
			continue
		}
		if len(h.waiting) >= maxWaiting {
			h.waiting = slices.Delete(h.waiting, 0, 1)
		}
		h.waiting = append(h.waiting, b)
	}
	return len(h.tunnels) > 0
}

// attach makes t the tunnel that is used: it begins with a greeting, and what has
// waited follows.
func (h *host) attach(t *tunnel, at whereabouts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t.offer(greeting{h.sess.ours, at}.marshal())
	for _, b := range h.waiting {
		t.offer(b)
	}
	h.waiting = nil
	if h.tunnels = append(h.tunnels, t); len(h.tunnels) > maxTunnels {
		h.tunnels[0].close()
	}
}

func (h *host) detach(t *tunnel) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tunnels = slices.DeleteFunc(h.tunnels, func(o *tunnel) bool { return o == t })
}

// greet tells the host where we are now.
func (h *host) greet(at whereabouts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.tunnels); n > 0 {
		h.tunnels[n-1].offer(greeting{h.sess.ours, at}.marshal())
	}
}

// hear takes what the host says of itself, and what is known of it beside.
func (h *host) hear(g greeting, seen []netip.AddrPort, inner func(netip.AddrPort) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sess.theirs != g.secret { // it has begun anew
		h.sess.theirs, h.sess.heard = g.secret, 0
	}
	own := g.addrs[:g.own]
	addrs := slices.DeleteFunc(slices.Concat(g.addrs, seen), func(a netip.AddrPort) bool {
		return inner(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	})
	h.sess.learn(addrs, true)
	h.sess.own(own)
}

// receive is [session.receive].
func (h *host) receive(now time.Duration, b []byte, from netip.AddrPort) ([]byte, netip.AddrPort, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	echo, seen, ok := h.sess.receive(now, b, from)
	if ok {
		h.reroute(now)
	}
	return echo, seen, ok
}

func (h *host) sources() (proved, seen []netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sess.sources()
}

// tick returns the probes that are due.
func (h *host) tick(now time.Duration) []outgoing {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sess.used = time.Duration(h.used.Load())
	out := h.sess.tick(now)
	h.reroute(now)
	return out
}

func (h *host) reroute(now time.Duration) {
	if r := h.sess.route(now); r != *h.route.Load() {
		h.route.Store(&r)
	}
}

// wantsStream says whether a stream should be opened now, and takes it that it
// will be.
func (h *host) wantsStream(now time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	busy := now-time.Duration(h.used.Load()) < busyFor
	if !busy || h.opening || len(h.tunnels) > 0 || now < h.next {
		return false
	}
	h.opening = true
	return true
}

// opened says how an opening ended.
func (h *host) opened(now time.Duration, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opening = false
	if err == nil {
		h.failed = 0
		return
	}
	h.next = now + min(openRetry<<min(h.failed, 10), openLimit)
	h.failed++
}

// lost says whether the host is in use and has no straight path.
func (h *host) lost(now time.Duration) bool {
	return now-time.Duration(h.used.Load()) < busyFor && !h.route.Load().straight.IsValid()
}

// idle says whether the host can be forgotten.
func (h *host) idle(now time.Duration) bool { return now-time.Duration(h.used.Load()) >= idleFor }

// close ends the host's streams.
func (h *host) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tunnels {
		t.close()
	}
}
