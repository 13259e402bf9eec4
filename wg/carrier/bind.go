package carrier

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// maxInjected is how many datagrams that came over streams wait for the device.
const maxInjected = 512

// Bind is how the WireGuard device in this process travels: by the carrier. The
// port is the socket's, whatever port the device is given.
type Bind struct {
	c *Carrier

	mu    sync.Mutex
	ended chan struct{} // of the time that it is open; nil: it is closed
}

// Bind returns the carrier's Bind. Only one device can have it open.
func (c *Carrier) Bind() *Bind { return &Bind{c: c} }

// Open implements conn.Bind.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.c.cfg.Socket
	if err := s.setOpen(true); err != nil {
		return nil, 0, err
	}
	ended := make(chan struct{})
	b.ended = ended
	var fns []conn.ReceiveFunc
	for _, l := range s.lines {
		fns = append(fns, func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			return s.readFor(ended, l, packets, sizes, eps)
		})
	}
	return append(fns, b.c.receiveInjected(ended)), s.port, nil
}

// readFor reads a line for a device until ended.
func (s *Socket) readFor(ended <-chan struct{}, l *line, packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	select {
	case <-ended:
		return 0, net.ErrClosed
	case l.reader <- struct{}{}:
	}
	defer func() { <-l.reader }()
	for {
		select {
		case <-ended:
			return 0, net.ErrClosed
		default:
		}
		n, err := s.read(l, packets, sizes, eps)
		if err != nil {
			return 0, err
		}
		select {
		case <-ended:
			return 0, net.ErrClosed
		default:
		}
		for _, size := range sizes[:n] {
			if size > 0 {
				return n, nil
			}
		}
	}
}

// receiveInjected hands the device what came over streams.
func (c *Carrier) receiveInjected(ended <-chan struct{}) conn.ReceiveFunc {
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-ended:
			return 0, net.ErrClosed
		case d := <-c.injected:
			sizes[0], eps[0] = copy(packets[0], d.b), &endpoint{to: d.from}
			return 1, nil
		}
	}
}

type injected struct {
	b    []byte
	from netip.AddrPort
}

// inject queues a datagram for the device, or drops it.
func (c *Carrier) inject(b []byte, from netip.AddrPort) {
	select {
	case c.injected <- injected{append([]byte(nil), b...), from}:
	default:
	}
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended == nil {
		return nil
	}
	close(b.ended)
	b.ended = nil
	if err := b.c.cfg.Socket.setOpen(false); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil // it has ended before
}

// SetMark implements conn.Bind.
func (b *Bind) SetMark(mark uint32) error { return b.c.cfg.Socket.udp.SetMark(mark) }

// Send implements conn.Bind.
func (b *Bind) Send(bufs [][]byte, to conn.Endpoint) error {
	e := b.c.known(to.(*endpoint))
	for _, p := range bufs {
		b.c.table.Out(p, own, e.to)
	}
	return b.c.send(bufs, e)
}

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	e, err := parseEndpoint(s)
	if err != nil {
		return nil, err // a nil *endpoint would be no nil Endpoint
	}
	return e, nil
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return b.c.cfg.Socket.udp.BatchSize() }
