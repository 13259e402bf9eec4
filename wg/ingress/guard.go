package ingress

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
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

// enter takes a place for a client; false: there is none.
func (g *guard) enter(c netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.taken >= g.total || g.of[c] >= g.each {
		return false
	}
	g.taken++
	g.of[c]++
	return true
}

func (g *guard) leave(c netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken--
	if g.of[c]--; g.of[c] == 0 {
		delete(g.of, c)
	}
}

// listener closes connections over the limits as they come.
func (g *guard) listener(l net.Listener, refused *atomic.Uint64) net.Listener {
	return &guardedListener{l, g, refused}
}

type guardedListener struct {
	net.Listener
	guard   *guard
	refused *atomic.Uint64
}

// Accept returns the next connection that may be.
func (l *guardedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := clientOf(c.RemoteAddr())
		if l.guard.enter(who) {
			return &guardedConn{Conn: c, leave: sync.OnceFunc(func() { l.guard.leave(who) })}, nil
		}
		l.refused.Add(1)
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
