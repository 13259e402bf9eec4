package carrier

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Path is how a host with a session is reached at this moment.
type Path struct {
	Host     peer.ID
	Straight netip.AddrPort // where datagrams go; invalid: by the stream, if at all
	Punched  bool           // Straight is a hole in a NAT, as far as the host's own addresses tell
	RTT      time.Duration  // of Straight
	Stream   bool           // there is one
	Relayed  bool           // the latest stream goes through another host
	Idle     time.Duration  // since the last datagram, either way
}

// Paths lists them by host.
func (c *Carrier) Paths() []Path {
	now := c.cfg.Now()
	c.mu.RLock()
	out := make([]Path, 0, len(c.hosts))
	for _, h := range c.hosts {
		out = append(out, h.path(now))
	}
	c.mu.RUnlock()
	slices.SortFunc(out, func(a, b Path) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

// path is the host's.
func (h *host) path(now time.Duration) Path {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := Path{Host: h.id, Idle: now - time.Duration(h.used.Load())}
	if c := h.sess.best(now); c != nil {
		p.Straight, p.RTT, p.Punched = c.at, c.rtt, !c.own
	}
	if n := len(h.tunnels); n > 0 {
		r, ok := h.tunnels[n-1].stream.(relayed)
		p.Stream, p.Relayed = true, ok && r.Relayed()
	}
	return p
}

// relayed is what a stream may know of itself.
type relayed interface{ Relayed() bool }
