package p2p

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	pb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
)

// What this node relays. Whoever sends pays, for a receiver cannot help it: a
// member's bytes have a burst, which makes up for a fallen link for a while, and
// then a rate, at which SSH and a mesh go on; and so have all members' together.
// What is over waits: nothing is cut, and the sender is told by its own full
// window.
const (
	relayRate     = 1 << 20 // bytes a second of one member
	relayBurst    = 1 << 30
	relayAllRate  = 16 << 20
	relayAllBurst = 8 << 30
	// maxRelayAccounts is of how many members accounts are kept, each at most as
	// long as its burst takes to be paid back; those that come beyond share one.
	maxRelayAccounts = 4096
)

// budget is how much may pass: a burst, and a rate in bytes a second at which it
// is paid back.
type budget struct{ rate, burst float64 }

// account is what has passed and is not paid back. Its zero value is empty.
type account struct {
	owed float64
	at   time.Time
}

// take notes n bytes, and says how long they have to wait.
func (a *account) take(b budget, n int, now time.Time) time.Duration {
	a.owed = a.left(b, now) + float64(n)
	a.at = now
	return time.Duration(max(0, a.owed-b.burst) / b.rate * float64(time.Second))
}

func (a *account) left(b budget, now time.Time) float64 {
	return max(0, a.owed-max(0, now.Sub(a.at).Seconds())*b.rate)
}

// relayMeter counts what members send through this node and says how long it
// waits. Its methods may be called concurrently.
type relayMeter struct {
	each, together budget
	now            func() time.Time

	mu       sync.Mutex
	all      account
	of       map[peer.ID]*account
	rest     account // of members beyond maxRelayAccounts
	stats    RelayStats
	requests map[string]uint64
}

// RelayStats are what this node has relayed for members since it started.
type RelayStats struct {
	Circuits int    // now
	Bytes    uint64 // sent by one end of a circuit
	Waited   uint64 // of them, those over a budget
	// Refused counts reservations and circuits by reason: "authority": no member,
	// "reservations" and "circuits": a limit, "shape": no request.
	Refused map[string]uint64
}

func newRelayMeter(each, together budget, now func() time.Time) *relayMeter {
	return &relayMeter{each: each, together: together, now: now, of: map[peer.ID]*account{},
		requests: map[string]uint64{"authority": 0, "reservations": 0, "circuits": 0, "shape": 0}}
}

// take notes n bytes that a member sent, and says how long they have to wait.
func (m *relayMeter) take(p peer.ID, n int) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	wait := max(m.account(p, now).take(m.each, n, now), m.all.take(m.together, n, now))
	m.stats.Bytes += uint64(n)
	if wait > 0 {
		m.stats.Waited += uint64(n)
	}
	return wait
}

// account finds or makes a member's; m.mu is held.
func (m *relayMeter) account(p peer.ID, now time.Time) *account {
	if a := m.of[p]; a != nil {
		return a
	}
	if len(m.of) >= maxRelayAccounts {
		for q, a := range m.of {
			if a.left(m.each, now) == 0 {
				delete(m.of, q)
			}
		}
	}
	if len(m.of) >= maxRelayAccounts {
		return &m.rest
	}
	a := &account{}
	m.of[p] = a
	return a
}

func (m *relayMeter) snapshot() RelayStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.stats
	out.Refused = maps.Clone(m.requests)
	return out
}

// refusedWith notes what became of a request.
func (m *relayMeter) refusedWith(s pb.Status) {
	var reason string
	switch s {
	case pb.Status_PERMISSION_DENIED:
		reason = "authority"
	case pb.Status_RESERVATION_REFUSED:
		reason = "reservations"
	case pb.Status_RESOURCE_LIMIT_EXCEEDED:
		reason = "circuits"
	case pb.Status_MALFORMED_MESSAGE, pb.Status_UNEXPECTED_MESSAGE:
		reason = "shape"
	default:
		return // granted, or in vain
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests[reason]++
}

func (m *relayMeter) circuits(by int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats.Circuits += by
}

// relayMeter is the library's relay.MetricsTracer.

// RelayStatus does nothing.
func (m *relayMeter) RelayStatus(bool) {}

// ConnectionOpened counts a circuit.
func (m *relayMeter) ConnectionOpened() { m.circuits(1) }

// ConnectionClosed counts it as ended.
func (m *relayMeter) ConnectionClosed(time.Duration) { m.circuits(-1) }

// ConnectionRequestHandled counts a refusal.
func (m *relayMeter) ConnectionRequestHandled(s pb.Status) { m.refusedWith(s) }

// ReservationAllowed does nothing.
func (m *relayMeter) ReservationAllowed(bool) {}

// ReservationClosed does nothing.
func (m *relayMeter) ReservationClosed(int) {}

// ReservationRequestHandled counts a refusal.
func (m *relayMeter) ReservationRequestHandled(s pb.Status) { m.refusedWith(s) }

// BytesTransferred does nothing: take counts.
func (m *relayMeter) BytesTransferred(int) {}

// meteredHost is the relay's view of the host: what it reads from members is
// counted, and waits. Requests are read by the same streams and count too, so that
// they are no way around.
type meteredHost struct {
	host.Host
	ctx   context.Context // of what waits
	meter *relayMeter
}

// SetStreamHandler hands metered streams to the handler.
func (h *meteredHost) SetStreamHandler(p protocol.ID, serve network.StreamHandler) {
	h.Host.SetStreamHandler(p, func(s network.Stream) { serve(&meteredStream{s, h}) })
}

// NewStream opens a metered stream.
func (h *meteredHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(ctx, p, ids...)
	if err != nil {
		return nil, err
	}
	return &meteredStream{s, h}, nil
}

type meteredStream struct {
	network.Stream
	host *meteredHost
}

// Read reads, and returns when what it read may go on.
func (s *meteredStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if n == 0 {
		return n, err
	}
	if wait := s.host.meter.take(s.Conn().RemotePeer(), n); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.host.ctx.Done():
			return n, s.host.ctx.Err()
		}
	}
	return n, err
}
