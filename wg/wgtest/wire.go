package wgtest

import (
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// Wire is a network in memory: what is sent to an address is received by the
// Bind that has it. Like a network it drops what nobody takes in time.
type Wire struct {
	mu    sync.Mutex
	binds map[netip.AddrPort]*Bind
	tap   func(b []byte, from, to netip.AddrPort) (pass bool)
}

// NewWire makes a network with nobody on it. tap sees every datagram, and says
// whether it arrives; nil: all do.
func NewWire(tap func(b []byte, from, to netip.AddrPort) (pass bool)) *Wire {
	return &Wire{binds: map[netip.AddrPort]*Bind{}, tap: tap}
}

// Bind makes a Bind with that address.
func (w *Wire) Bind(at netip.AddrPort) *Bind {
	b := &Bind{wire: w, at: at}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.binds[at] = b
	return b
}

// Send carries a datagram.
func (w *Wire) Send(b []byte, from, to netip.AddrPort) {
	if w.tap == nil || w.tap(b, from, to) {
		w.Deliver(b, from, to)
	}
}

// Deliver hands a datagram to who has the address, past the tap.
func (w *Wire) Deliver(b []byte, from, to netip.AddrPort) {
	w.mu.Lock()
	dst := w.binds[to]
	w.mu.Unlock()
	if dst != nil {
		dst.receive(b, from)
	}
}

type datagram struct {
	b    []byte
	from netip.AddrPort
}

// Bind implements conn.Bind on a [Wire].
type Bind struct {
	wire *Wire

	mu    sync.Mutex
	at    netip.AddrPort
	queue chan datagram // nil: closed
	ended chan struct{}
}

// Move gives the Bind another address, as a machine that roams.
func (b *Bind) Move(to netip.AddrPort) {
	b.wire.mu.Lock()
	defer b.wire.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.wire.binds, b.at)
	b.at = to
	b.wire.binds[to] = b
}

func (b *Bind) receive(p []byte, from netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.queue <- datagram{slices.Clone(p), from}:
	default:
	}
}

// Open implements conn.Bind.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queue != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	queue, ended := make(chan datagram, 1024), make(chan struct{})
	b.queue, b.ended = queue, ended
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-ended:
			return 0, net.ErrClosed
		case d := <-queue:
			sizes[0] = copy(packets[0], d.b)
			eps[0] = endpoint(d.from)
			return 1, nil
		}
	}
	return []conn.ReceiveFunc{receive}, b.at.Port(), nil
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queue != nil {
		close(b.ended)
		b.queue = nil
	}
	return nil
}

// SetMark implements conn.Bind.
func (b *Bind) SetMark(uint32) error { return nil }

// Send implements conn.Bind.
func (b *Bind) Send(bufs [][]byte, to conn.Endpoint) error {
	b.mu.Lock()
	from := b.at
	b.mu.Unlock()
	for _, p := range bufs {
		b.wire.Send(p, from, netip.AddrPort(to.(endpoint)))
	}
	return nil
}

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return endpoint(a), err
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return 1 }

type endpoint netip.AddrPort

func (e endpoint) ClearSrc()           {}
func (e endpoint) SrcToString() string { return "" }
func (e endpoint) DstToString() string { return netip.AddrPort(e).String() }
func (e endpoint) DstToBytes() []byte  { b, _ := netip.AddrPort(e).MarshalBinary(); return b }
func (e endpoint) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (e endpoint) SrcIP() netip.Addr   { return netip.Addr{} }
