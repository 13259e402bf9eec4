package forward

import (
	"net/netip"
	"time"
)

// bucket lets rate things a second pass, burst at once.
type bucket struct {
	rate, burst float64
	left        float64
	last        time.Duration
}

func (b *bucket) take(now time.Duration) bool {
	b.left = min(b.burst, b.left+(now-b.last).Seconds()*b.rate)
	b.last = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// recent remembers at least the last n remotes that were put, and at most twice
// as many: a full half pushes the other out.
type recent struct {
	n        int
	now, old map[netip.AddrPort]string
}

func newRecent(n int) recent { return recent{n: n, now: map[netip.AddrPort]string{}} }

func (r *recent) get(a netip.AddrPort) (string, bool) {
	if name, ok := r.now[a]; ok {
		return name, true
	}
	name, ok := r.old[a]
	return name, ok
}

func (r *recent) put(a netip.AddrPort, name string) {
	if len(r.now) >= r.n {
		r.old, r.now = r.now, make(map[netip.AddrPort]string, r.n)
	}
	r.now[a] = name
}
