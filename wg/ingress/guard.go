package ingress

import (
	"net"
	"net/netip"
	"sync"
)

// guard counts what clients have.
type guard struct {
	total, each int

	mu    sync.Mutex
	taken int
	of    map[netip.Prefix]int
}

func newGuard(total, each int) *guard {
	return &guard{total: total, each: each, of: map[netip.Prefix]int{}}
}

// clientOf is who counts as one: an address, of IPv6 a /64, because everybody has
// as many addresses there as they like.
func clientOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // one for all that have no address
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

// What stands in a client's way.
type over int

const (
	overNothing over = iota
	overAll          // there are no more places
	overOne          // this client has all that one may have
)

// enter takes a place for a client, unless something is in the way.
func (g *guard) enter(c netip.Prefix) over {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.of[c] >= g.each:
		return overOne
	case g.taken >= g.total:
		return overAll
	}
	g.taken++
	g.of[c]++
	return overNothing
}

func (g *guard) leave(c netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken--
	if g.of[c]--; g.of[c] == 0 {
		delete(g.of, c)
	}
}

// listener closes connections over the limits as they come, and counts the others
// as ones of a kind.
func (g *guard) listener(l net.Listener, kind string, stats *counters) net.Listener {
	return &guardedListener{l, g, kind, stats}
}

type guardedListener struct {
	net.Listener
	guard *guard
	kind  string
	stats *counters
}

// Accept returns the next connection that may be.
func (l *guardedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := clientOf(c.RemoteAddr())
		switch l.guard.enter(who) {
		case overNothing:
			l.stats.opened(l.kind, 1)
			return &guardedConn{Conn: c, leave: sync.OnceFunc(func() {
				l.guard.leave(who)
				l.stats.opened(l.kind, -1)
			})}, nil
		case overOne:
			l.stats.refuse(refusedConnsOfOne)
		case overAll:
			l.stats.refuse(refusedConns)
		}
		// There is nobody to tell.
		_ = c.Close()
	}
}

// guardedConn gives its place back when it is closed.
type guardedConn struct {
	net.Conn
	leave func()
}

// Close closes it.
func (c *guardedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// CloseWrite half-closes it, where that is possible.
func (c *guardedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}
