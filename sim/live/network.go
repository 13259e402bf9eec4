package live

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// NetConfig is how the network behaves. Probabilities are per packet.
type NetConfig struct {
	// Delay is how long a packet takes from one node to another. Nil: 20 ms.
	Delay func(from, to int) time.Duration
	// Jitter: each packet takes up to this share longer, and may overtake others.
	Jitter    float64
	Loss      float64
	Duplicate float64
}

// Traffic is what was sent, in UDP payload.
type Traffic struct{ Packets, Bytes, Lost uint64 }

type link struct{ from, to int }

// queued bounds the packets on their way to one socket: a socket that nobody reads
// loses the rest, as the kernel's does.
const queued = 4096

// network moves packets between the sockets of nodes. Each link draws from a stream
// of its own.
type network struct {
	seed uint64

	mu      sync.Mutex
	cfg     NetConfig
	sockets map[netip.AddrPort]*socket
	streams map[link]*rand.Rand
	side    []int
	mute    []bool // nothing leaves or reaches these nodes
	cut     map[link]bool
	traffic []Traffic // by sender
	clogged []bool
	waiting []held
	slow    []time.Duration
}

func newNetwork(cfg NetConfig, nodes int, seed uint64) *network {
	if cfg.Delay == nil {
		cfg.Delay = func(int, int) time.Duration { return 20 * time.Millisecond }
	}
	return &network{
		cfg: cfg, seed: seed, sockets: map[netip.AddrPort]*socket{}, streams: map[link]*rand.Rand{},
		side: make([]int, nodes), mute: make([]bool, nodes), cut: map[link]bool{}, traffic: make([]Traffic, nodes),
		clogged: make([]bool, nodes), slow: make([]time.Duration, nodes),
	}
}

// port is where every node listens.
const port = 4001

// address is the IP of a node, which no machine has to have.
func address(node int) netip.Addr {
	return netip.AddrFrom4([4]byte{11, byte(node >> 16), byte(node >> 8), byte(node)})
}

// listen opens a socket of a node, on a port of its own when addr has none.
func (n *network) listen(node int, addr *net.UDPAddr) (net.PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := netip.AddrPortFrom(address(node), uint16(addr.Port))
	for p := uint16(49152); addr.Port == 0 && (at.Port() == 0 || n.sockets[at] != nil); p++ {
		at = netip.AddrPortFrom(at.Addr(), p)
	}
	if n.sockets[at] != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: addr, Err: errInUse}
	}
	s := newSocket(n, node, at)
	n.sockets[at] = s
	return s, nil
}

func (n *network) forget(s *socket) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sockets[s.at] == s {
		delete(n.sockets, s.at)
	}
}

// arrivals is how far apart packets arrive: those of one instant are worked on by all
// cores at once, and time goes on once for them all. With 100 hosts that begin it takes
// less than half as long as arrivals to the nanosecond do, and a hop is longer or shorter
// by a quarter of a millisecond.
const arrivals = time.Millisecond

// send puts a packet on its way, or loses it.
func (n *network) send(s *socket, to netip.AddrPort, payload []byte) {
	n.mu.Lock()
	t := &n.traffic[s.node]
	t.Packets++
	t.Bytes += uint64(len(payload))
	dst := n.sockets[to]
	if dst == nil || !n.reaches(s.node, dst.node) {
		t.Lost++
		n.mu.Unlock()
		return
	}
	if n.holds(s, dst, payload) {
		n.mu.Unlock()
		return
	}
	rng := n.stream(link{s.node, dst.node})
	if n.cfg.Loss > 0 && rng.Float64() < n.cfg.Loss {
		t.Lost++
		n.mu.Unlock()
		return
	}
	copies := 1
	if n.cfg.Duplicate > 0 && rng.Float64() < n.cfg.Duplicate {
		copies = 2
	}
	var due [2]time.Time
	now := time.Now()
	for i := range copies {
		d := n.cfg.Delay(s.node, dst.node)
		if n.cfg.Jitter > 0 {
			d += time.Duration(rng.Float64() * n.cfg.Jitter * float64(d))
		}
		due[i] = now.Add(d + n.slow[dst.node]).Round(arrivals)
	}
	n.mu.Unlock()
	for i := range copies {
		dst.arrive(packet{from: s.udp, due: due[i], payload: payload})
	}
}

func (n *network) reaches(from, to int) bool {
	return !n.mute[from] && !n.mute[to] && n.side[from] == n.side[to] && !n.cut[link{from, to}]
}

func (n *network) stream(l link) *rand.Rand {
	rng := n.streams[l]
	if rng == nil {
		rng = rand.New(rand.NewPCG(n.seed, uint64(l.from)<<32|uint64(l.to)))
		n.streams[l] = rng
	}
	return rng
}

// change runs f with the network at rest.
func (n *network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}
