package carrier

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// maxQueued is how many datagrams wait for QUIC to read them; more are dropped,
// as by a socket whose buffer is full. quicSize is the longest that it gets.
const (
	maxQueued = 512
	quicSize  = 1500
)

// virtual is QUIC's share of a socket, one for each IP version.
type virtual struct {
	socket *Socket
	local  *net.UDPAddr
	queue  chan received
	free   sync.Pool // of *[quicSize]byte

	mu       sync.Mutex
	closed   chan struct{}
	isClosed bool
	deadline time.Time     // of reading; zero: none
	changed  chan struct{} // closed when the deadline changes
}

type received struct {
	b    *[quicSize]byte
	n    int
	from netip.AddrPort
}

func newVirtual(s *Socket, ipv6 bool) *virtual {
	local := &net.UDPAddr{IP: net.IPv4zero, Port: int(s.port)}
	if ipv6 {
		local.IP = net.IPv6unspecified
	}
	if p, ok := s.udp.(*plainBind); ok {
		local.IP = p.at.AsSlice()
	}
	return &virtual{socket: s, local: local, queue: make(chan received, maxQueued), closed: make(chan struct{}),
		changed: make(chan struct{}), free: sync.Pool{New: func() any { return new([quicSize]byte) }}}
}

// push queues a datagram, or drops it.
func (v *virtual) push(b []byte, from netip.AddrPort) {
	if len(b) > quicSize {
		return
	}
	buf := v.free.Get().(*[quicSize]byte)
	select {
	case v.queue <- received{buf, copy(buf[:], b), from}:
	default:
		v.free.Put(buf)
	}
}

func (v *virtual) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		r, err := v.next()
		if err != nil {
			return 0, nil, v.fail("read", err)
		}
		if r.b != nil {
			n := copy(p, r.b[:r.n])
			v.free.Put(r.b)
			return n, net.UDPAddrFromAddrPort(r.from), nil
		}
	}
}

// next waits for a datagram; it returns none when the deadline has changed.
func (v *virtual) next() (received, error) {
	v.mu.Lock()
	deadline, changed, closed := v.deadline, v.changed, v.isClosed
	v.mu.Unlock()
	if closed {
		return received{}, net.ErrClosed
	}
	var expired <-chan time.Time
	if !deadline.IsZero() {
		left := time.Until(deadline)
		if left <= 0 {
			return received{}, os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(left)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-v.closed:
		return received{}, net.ErrClosed
	case <-v.socket.ended:
		return received{}, net.ErrClosed
	case <-expired:
		return received{}, os.ErrDeadlineExceeded
	case <-changed:
		return received{}, nil
	case r := <-v.queue:
		return r, nil
	}
}

func (v *virtual) WriteTo(p []byte, to net.Addr) (int, error) {
	select {
	case <-v.closed:
		return 0, v.fail("write", net.ErrClosed)
	default:
	}
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, v.fail("write", net.InvalidAddrError("no UDP address"))
	}
	at := u.AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if err := v.socket.send([][]byte{p}, &conn.StdNetEndpoint{AddrPort: at}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (v *virtual) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: v.local, Err: err}
}

func (v *virtual) LocalAddr() net.Addr { return v.local }

// SetReadBuffer and SetWriteBuffer do nothing: the socket's own are wireguard-go's,
// no smaller than QUIC's. Without them QUIC complains on stderr.
func (v *virtual) SetReadBuffer(int) error  { return nil }
func (v *virtual) SetWriteBuffer(int) error { return nil }

// Close ends reading and writing here; the socket goes on.
func (v *virtual) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.isClosed {
		return v.fail("close", net.ErrClosed)
	}
	v.isClosed = true
	close(v.closed)
	return nil
}

// over says whether it was closed.
func (v *virtual) over() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.isClosed
}

func (v *virtual) SetDeadline(t time.Time) error { return v.SetReadDeadline(t) }

// SetWriteDeadline does nothing: writing does not wait.
func (v *virtual) SetWriteDeadline(time.Time) error { return nil }

func (v *virtual) SetReadDeadline(t time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.deadline = t
	close(v.changed)
	v.changed = make(chan struct{})
	return nil
}
