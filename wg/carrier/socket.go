package carrier

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/formthefog/formation/wg/forward"
)

// Socket is the one UDP port of a node, for WireGuard, probes and QUIC. Somebody
// has to read it: the [Bind] of a device in this process does while it is open,
// into the device's own buffers, and else the Socket itself.
type Socket struct {
	udp   conn.Bind
	port  uint16
	lines []*line
	quic  [2]atomic.Pointer[virtual] // IPv4, IPv6; nil: nobody listens
	ended chan struct{}
	reads sync.WaitGroup

	handler atomic.Pointer[handler]

	mu     sync.Mutex
	open   bool // a Bind reads
	done   bool
	turned chan struct{} // closed when open changes
}

// handler takes what is no QUIC; both functions may keep no part of b. datagram
// says from whom it is for the device of the open Bind, and false when it is not
// for that.
type handler struct {
	probe    func(b []byte, from netip.AddrPort)
	datagram func(b []byte, from netip.AddrPort) (netip.AddrPort, bool)
}

// line is one of the sockets below, IPv4 or IPv6.
type line struct {
	receive conn.ReceiveFunc
	reader  chan struct{} // capacity 1, full while somebody reads
}

// Listen opens the port, 0 for any, on all addresses of the machine or, where at
// is valid, on that one alone.
func Listen(port uint16, at netip.Addr) (*Socket, error) {
	s := &Socket{ended: make(chan struct{}), turned: make(chan struct{})}
	if at.IsValid() && !at.IsUnspecified() {
		s.udp = &plainBind{at: at}
	} else {
		s.udp = conn.NewStdNetBind()
	}
	receivers, port, err := s.udp.Open(port)
	if err != nil {
		return nil, fmt.Errorf("carrier: listen on UDP port %d: %w", port, err)
	}
	s.port = port
	for _, r := range receivers {
		l := &line{receive: r, reader: make(chan struct{}, 1)}
		s.lines = append(s.lines, l)
		s.reads.Go(func() { s.pump(l) })
	}
	return s, nil
}

// Port is the port that is open.
func (s *Socket) Port() uint16 { return s.port }

// ListenUDP gives QUIC its share of the socket, what is no WireGuard and no probe,
// over "udp4" or "udp6". Closing it leaves the socket alone. Another address than
// the socket's, and a share that somebody has, is a socket of the kernel's.
func (s *Socket) ListenUDP(network string, at *net.UDPAddr) (net.PacketConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	share := &s.quic[b2i(network == "udp6")]
	v := newVirtual(s, network == "udp6")
	ours := v.local.IP.Equal(at.IP) && (at.Port == 0 || at.Port == int(s.port))
	if old := share.Load(); !ours || s.done || old != nil && !old.over() {
		return net.ListenUDP(network, at)
	}
	share.Store(v)
	return v, nil
}

// Close ends the socket and everything that reads it.
func (s *Socket) Close() error {
	s.mu.Lock()
	if s.done {
		s.mu.Unlock()
		return nil
	}
	s.done = true
	close(s.ended)
	s.mu.Unlock()
	err := s.udp.Close()
	s.reads.Wait()
	return err
}

// setOpen says whether a Bind reads from now on, and wakes who reads now.
func (s *Socket) setOpen(open bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.done:
		return net.ErrClosed
	case open && s.open:
		return conn.ErrBindAlreadyOpen
	}
	s.open = open
	close(s.turned)
	s.turned = make(chan struct{})
	for _, to := range s.selves() {
		// A lost one is made good by the next datagram from anywhere.
		_ = s.udp.Send([][]byte{{0}}, &conn.StdNetEndpoint{AddrPort: to})
	}
	return nil
}

// selves is where the socket reaches itself, once for each line.
func (s *Socket) selves() []netip.AddrPort {
	if p, ok := s.udp.(*plainBind); ok {
		return []netip.AddrPort{netip.AddrPortFrom(p.at, s.port)}
	}
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.port),
		netip.AddrPortFrom(netip.IPv6Loopback(), s.port),
	}
}

// turn returns whether a Bind reads, and what is closed when that changes.
func (s *Socket) turn() (bindReads bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, s.turned
}

// pump reads a line as long as no Bind does.
func (s *Socket) pump(l *line) {
	for {
		bindReads, changed := s.turn()
		if bindReads {
			select {
			case <-s.ended:
				return
			case <-changed:
			}
			continue
		}
		if s.drain(l) {
			return
		}
	}
}

// drain reads a line until a Bind does; it returns true when the socket has ended.
func (s *Socket) drain(l *line) bool {
	select {
	case <-s.ended:
		return true
	case l.reader <- struct{}{}:
	}
	defer func() { <-l.reader }()
	n := s.udp.BatchSize()
	packets, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
	for i := range packets {
		packets[i] = make([]byte, maxDatagram)
	}
	for {
		if bindReads, _ := s.turn(); bindReads {
			return false
		}
		if _, err := s.read(l, packets, sizes, eps); errors.Is(err, net.ErrClosed) {
			return true
		}
	}
}

// maxDatagram is what a buffer must hold: the kernel hands over several datagrams
// at once.
const maxDatagram = 1<<16 - 1

// read takes a batch off a line and hands out what is not the device's; of that
// the sizes are 0 afterwards.
func (s *Socket) read(l *line, packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	n, err := l.receive(packets, sizes, eps)
	if err != nil {
		return 0, err
	}
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		at, ok := eps[i].(*conn.StdNetEndpoint)
		if !ok {
			sizes[i] = 0
			continue
		}
		from := netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		if remote, own := s.dispatch(packets[i][:sizes[i]], from); own {
			eps[i] = &endpoint{to: remote, std: at}
		} else {
			sizes[i] = 0
		}
	}
	return n, nil
}

// dispatch hands out one datagram; own says that it is the device's, and from whom.
func (s *Socket) dispatch(b []byte, from netip.AddrPort) (remote netip.AddrPort, own bool) {
	h := s.handler.Load()
	switch {
	case forward.Is(b):
		if h != nil {
			return h.datagram(b, from)
		}
	case isProbe(b):
		if h != nil {
			h.probe(b, from)
		}
	case b[0]&0x40 != 0:
		if v := s.quic[b2i(from.Addr().Is6())].Load(); v != nil {
			v.push(b, from)
		}
	}
	return netip.AddrPort{}, false
}

// send sends datagrams straight to an address of the network.
func (s *Socket) send(bufs [][]byte, to *conn.StdNetEndpoint) error {
	err := s.udp.Send(bufs, to)
	var offload conn.ErrUDPGSODisabled
	if errors.As(err, &offload) {
		return offload.RetryErr
	}
	return err
}
