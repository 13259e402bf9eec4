package live

import (
	"container/heap"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

var errInUse = errors.New("address already in use")

// packet is on its way until due.
type packet struct {
	from    *net.UDPAddr
	due     time.Time
	seq     uint64 // of those due at once the first sent arrives first
	payload []byte
}

// socket is a net.PacketConn of a network. Waiting for a packet is waiting for a
// channel or a timer, so that virtual time passes meanwhile.
type socket struct {
	net  *network
	node int
	at   netip.AddrPort
	udp  *net.UDPAddr
	gone chan struct{} // closed by Close
	wake chan struct{} // of capacity 1: what a reader waits for has changed

	mu       sync.Mutex
	closed   bool
	deadline time.Time
	seq      uint64
	queue    packets
}

func newSocket(n *network, node int, at netip.AddrPort) *socket {
	return &socket{net: n, node: node, at: at, udp: net.UDPAddrFromAddrPort(at), gone: make(chan struct{}), wake: make(chan struct{}, 1)}
}

func (s *socket) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *socket) arrive(p packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.queue) >= queued {
		return
	}
	p.seq = s.seq
	s.seq++
	heap.Push(&s.queue, p)
	if s.queue[0].seq == p.seq {
		s.nudge()
	}
}

// ReadFrom is called by one reader at a time.
func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		s.mu.Lock()
		now := time.Now()
		switch {
		case s.closed:
			s.mu.Unlock()
			return 0, nil, net.ErrClosed
		case !s.deadline.IsZero() && !now.Before(s.deadline):
			s.mu.Unlock()
			return 0, nil, os.ErrDeadlineExceeded
		case len(s.queue) > 0 && !now.Before(s.queue[0].due):
			p := heap.Pop(&s.queue).(packet)
			s.mu.Unlock()
			return copy(b, p.payload), p.from, nil
		}
		until := s.deadline
		if len(s.queue) > 0 && (until.IsZero() || s.queue[0].due.Before(until)) {
			until = s.queue[0].due
		}
		s.mu.Unlock()
		s.wait(now, until)
	}
}

// wait returns when something has changed, or at until, if that is not zero.
func (s *socket) wait(now, until time.Time) {
	if until.IsZero() {
		select {
		case <-s.wake:
		case <-s.gone:
		}
		return
	}
	t := time.NewTimer(until.Sub(now))
	defer t.Stop()
	select {
	case <-s.wake:
	case <-s.gone:
	case <-t.C:
	}
}

func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: errors.New("no UDP address")}
	}
	select {
	case <-s.gone:
		return 0, net.ErrClosed
	default:
	}
	at := udp.AddrPort()
	s.net.send(s, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), append([]byte(nil), b...))
	return len(b), nil
}

func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	s.queue = nil
	close(s.gone)
	s.net.forget(s)
	return nil
}

func (s *socket) LocalAddr() net.Addr { return s.udp }

func (s *socket) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

func (s *socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	s.nudge()
	return nil
}

// SetWriteDeadline does nothing: no write waits.
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// The buffers are as large as anybody wants.
func (s *socket) SetReadBuffer(int) error  { return nil }
func (s *socket) SetWriteBuffer(int) error { return nil }

// packets is a heap by when they are due.
type packets []packet

func (q packets) Len() int { return len(q) }
func (q packets) Less(i, j int) bool {
	if !q[i].due.Equal(q[j].due) {
		return q[i].due.Before(q[j].due)
	}
	return q[i].seq < q[j].seq
}
func (q packets) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *packets) Push(x any)   { *q = append(*q, x.(packet)) }
func (q *packets) Pop() any {
	old := *q
	p := old[len(old)-1]
	old[len(old)-1] = packet{}
	*q = old[:len(old)-1]
	return p
}
