package carrier

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/formthefog/formation/wg/forward"
)

// Streams opens streams to hosts, for members alone, relayed where need be.
type Streams interface {
	OpenStream(ctx context.Context, host peer.ID) (io.ReadWriteCloser, error)
}

// Config is what a [Carrier] needs; all but Self, Addresses, Seen, Inner, Witnesses and Log must be set.
type Config struct {
	Socket *Socket
	// Self is this host: what stations send there is for each other.
	Self    peer.ID
	Streams Streams
	// Addresses returns this node's own, best first; where a NAT has it, the
	// carrier finds out.
	Addresses func() []netip.AddrPort
	// Seen returns from where a host's connections come, or at which it is known
	// to be beside what it says itself.
	Seen func(host peer.ID) []netip.AddrPort
	// Inner are the prefixes of the mesh itself: no path goes through what it carries.
	Inner []netip.Prefix
	// Witnesses returns hosts that are reached straight and may see this node from
	// outside, best first: they are asked where that is while another host has no
	// straight path.
	Witnesses func() []peer.ID
	Now       func() time.Duration // since boot, suspension included
	Log       *slog.Logger         // nil: slog.Default()
}

// Bounds of a carrier.
const (
	maxHosts    = 4096 // with a session
	maxOthers   = 1024 // of them, who came by themselves and may not be sent to
	maxObserved = 4    // addresses at which others have seen us
	maxTunnels  = 2    // with one host: both sides may have opened one
	tickEvery   = 250 * time.Millisecond
	openTimeout = 20 * time.Second
	openRetry   = 2 * time.Second // after a failure, doubled up to openLimit
	openLimit   = time.Minute
)

// Carrier moves datagrams. Its methods may be called by several goroutines.
type Carrier struct {
	cfg   Config
	table *forward.Table
	wake  chan struct{} // capacity 1

	self     netip.AddrPort // the address of Config.Self; zero: none
	injected chan injected
	stations atomic.Pointer[map[string]Station] // never nil
	sources  atomic.Pointer[map[netip.AddrPort]netip.AddrPort]

	mu       sync.RWMutex
	names    map[netip.AddrPort]peer.ID // hosts that may be sent to
	hosts    map[netip.AddrPort]*host   // with a session, by their address
	sessions map[uint64]*host           // by our session number
	observed []netip.AddrPort           // where others have seen us, latest first
	ctx      context.Context            // of Run; nil before and after
	tasks    sync.WaitGroup
}

// Station is a WireGuard instance behind the port: a guest, or a device in the
// kernel. Its function gets the datagrams that are for it, and may not keep b.
type Station struct {
	Public  [32]byte
	Deliver func(b []byte, from netip.AddrPort)
}

// own is the name of the device whose Bind is the carrier's.
const own = ""

// New makes a Carrier that does nothing before [Carrier.Run].
func New(cfg Config) (*Carrier, error) {
	if cfg.Socket == nil || cfg.Streams == nil || cfg.Now == nil {
		return nil, errors.New("carrier: Socket, Streams and Now must be set")
	}
	if cfg.Addresses == nil {
		cfg.Addresses = func() []netip.AddrPort { return nil }
	}
	if cfg.Witnesses == nil {
		cfg.Witnesses = func() []peer.ID { return nil }
	}
	if cfg.Seen == nil {
		cfg.Seen = func(peer.ID) []netip.AddrPort { return nil }
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Carrier{cfg: cfg, table: forward.New(cfg.Now), wake: make(chan struct{}, 1), injected: make(chan injected, maxInjected),
		names: map[netip.AddrPort]peer.ID{}, hosts: map[netip.AddrPort]*host{}, sessions: map[uint64]*host{}}
	if cfg.Self != "" {
		c.self = Address(cfg.Self)
	}
	c.stations.Store(&map[string]Station{})
	c.sources.Store(&map[netip.AddrPort]netip.AddrPort{})
	cfg.Socket.handler.Store(&handler{probe: c.probed, datagram: c.arrived})
	return c, nil
}

// Hosts says which hosts may be sent to, all of them. Others may still come.
func (c *Carrier) Hosts(ids []peer.ID) {
	names := make(map[netip.AddrPort]peer.ID, len(ids))
	for _, id := range ids {
		names[Address(id)] = id
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names = names
}

// Stations says who is behind the port beside the device of [Carrier.Bind], all
// of them by name, and what the public key of that device is (zero: there is
// none).
func (c *Carrier) Stations(device [32]byte, stations map[string]Station) {
	keys := make(map[string][32]byte, len(stations)+1)
	kept := make(map[string]Station, len(stations))
	for name, s := range stations {
		if name != own {
			keys[name], kept[name] = s.Public, s
		}
	}
	if device != ([32]byte{}) {
		keys[own] = device
	}
	c.stations.Store(&kept)
	c.table.Set(keys)
}

// Send sends a datagram of the named station to a host or an address of the
// network. What cannot be sent is lost.
func (c *Carrier) Send(station string, b []byte, to netip.AddrPort) {
	e := c.known(&endpoint{to: to})
	if station == own || !c.table.Out(b, station, e.to) {
		return
	}
	c.send([][]byte{b}, e)
}

// known is the host of an address of the network that is known to be one's: who heard
// a host before it had proved the address sends there, and is to reach it by any path.
func (c *Carrier) known(to *endpoint) *endpoint {
	if h, ok := (*c.sources.Load())[to.to]; ok {
		return &endpoint{to: h}
	}
	return to
}

// send sends datagrams that may be sent.
func (c *Carrier) send(bufs [][]byte, to *endpoint) error {
	if !IsHost(to.to) {
		std := to.std
		if std == nil {
			std = &conn.StdNetEndpoint{AddrPort: to.to}
		}
		return c.cfg.Socket.send(bufs, std)
	}
	if to.to == c.self {
		for _, b := range bufs {
			if c.deliver(b, c.self) {
				c.inject(b, c.self)
			}
		}
		return nil
	}
	h := c.hostAt(to.to)
	if h == nil {
		return fmt.Errorf("carrier: no host has the address %s", to.to)
	}
	h.touch(c.cfg.Now())
	r := h.route.Load()
	if r.straight.IsValid() {
		// The stream makes good what cannot go straight.
		if err := c.cfg.Socket.send(bufs, &conn.StdNetEndpoint{AddrPort: r.straight}); err == nil && !r.stream {
			return nil
		}
	}
	if !h.queue(bufs) {
		c.nudge() // a stream is to be opened
	}
	return nil
}

// arrived takes a datagram off the socket; own: it is for the device.
func (c *Carrier) arrived(b []byte, from netip.AddrPort) (netip.AddrPort, bool) {
	if h, ok := (*c.sources.Load())[from]; ok {
		from = h
		if h := c.existing(from); h != nil {
			h.touch(c.cfg.Now())
		}
	}
	return from, c.deliver(b, from)
}

// deliver hands a datagram to its station; true: it is for the device.
func (c *Carrier) deliver(b []byte, from netip.AddrPort) bool {
	name, ok := c.table.In(b, from)
	if !ok {
		return false
	}
	if name == own {
		return true
	}
	if s, ok := (*c.stations.Load())[name]; ok {
		s.Deliver(b, from)
	}
	return false
}

// probed takes a probe off the socket.
func (c *Carrier) probed(b []byte, from netip.AddrPort) {
	if c.inner(from) {
		return
	}
	c.mu.RLock()
	h := c.sessions[sessionOf(b)]
	c.mu.RUnlock()
	if h == nil {
		return
	}
	echo, seen, ok := h.receive(c.cfg.Now(), b, from)
	if !ok {
		return
	}
	if echo != nil {
		// A lost echo is a lost probe: the next comes.
		_ = c.cfg.Socket.send([][]byte{echo}, &conn.StdNetEndpoint{AddrPort: from})
	}
	c.remap()
	if seen.IsValid() && !c.inner(seen) {
		c.observe(seen)
	}
}

// inner says whether an address is one of the mesh.
func (c *Carrier) inner(a netip.AddrPort) bool {
	return slices.ContainsFunc(c.cfg.Inner, func(p netip.Prefix) bool { return p.Contains(a.Addr()) })
}

// observe notes where a host has seen us, and tells the others.
func (c *Carrier) observe(at netip.AddrPort) {
	c.mu.Lock()
	known := slices.Contains(c.observed, at)
	if !known {
		c.observed = append([]netip.AddrPort{at}, c.observed[:min(len(c.observed), maxObserved-1)]...)
	}
	hosts := make([]*host, 0, len(c.hosts))
	for _, h := range c.hosts {
		hosts = append(hosts, h)
	}
	c.mu.Unlock()
	if !known {
		for _, h := range hosts {
			h.greet(c.addresses())
		}
	}
}

// addresses is where we may be: what others see comes after the own addresses that
// we know.
func (c *Carrier) addresses() whereabouts {
	out := slices.Clone(c.cfg.Addresses())
	own := min(len(out), maxCandidates-maxObserved)
	out = out[:own]
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, a := range c.observed {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return whereabouts{out, own}
}

// remap publishes from where the datagrams of hosts come. Who has proved an address
// has it, whoever else was seen there: what comes over UDP can say that it is from
// anywhere.
func (c *Carrier) remap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	sources, proved := map[netip.AddrPort]netip.AddrPort{}, map[netip.AddrPort]netip.AddrPort{}
	for at, h := range c.hosts { // any order: an address of two hosts is theirs by chance
		p, seen := h.sources()
		for _, a := range p {
			proved[a] = at
		}
		for _, a := range seen {
			sources[a] = at
		}
	}
	maps.Copy(sources, proved)
	c.sources.Store(&sources)
}

func (c *Carrier) existing(at netip.AddrPort) *host {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.hosts[at]
}

// hostAt is the host of an address, with a session from now on; nil: there is
// none, or there are too many.
func (c *Carrier) hostAt(at netip.AddrPort) *host {
	if h := c.existing(at); h != nil {
		return h
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[at]; h != nil {
		return h
	}
	id, ok := c.names[at]
	if !ok {
		return nil
	}
	return c.begin(id, at)
}

// begin makes a session; c.mu is held.
func (c *Carrier) begin(id peer.ID, at netip.AddrPort) *host {
	if len(c.hosts) >= maxHosts {
		return nil
	}
	if _, wanted := c.names[at]; !wanted && c.others() >= maxOthers {
		return nil
	}
	var s secret
	rand.Read(s.key[:])
	var n [8]byte
	rand.Read(n[:])
	s.session = binary.BigEndian.Uint64(n[:])
	h := newHost(id, s, c.cfg.Now())
	c.hosts[at], c.sessions[s.session] = h, h
	c.nudge()
	return h
}

// others counts the sessions with hosts that may not be sent to; c.mu is held.
func (c *Carrier) others() (n int) {
	if len(c.hosts) < maxOthers {
		return 0
	}
	for at := range c.hosts { // any order: it is counted
		if _, wanted := c.names[at]; !wanted {
			n++
		}
	}
	return n
}

func (c *Carrier) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run keeps paths until ctx ends; then every stream is closed.
func (c *Carrier) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	c.ctx = ctx
	c.mu.Unlock()
	defer func() {
		cancel()
		c.mu.Lock()
		c.ctx = nil
		c.mu.Unlock()
		c.tasks.Wait()
	}()
	for {
		var timer <-chan time.Time
		if c.tick(ctx) {
			timer = time.After(tickEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-timer:
		}
	}
}

// tick sends the probes that are due, opens the streams that are needed and
// forgets hosts that are idle. It returns whether any host is left.
func (c *Carrier) tick(ctx context.Context) bool {
	now := c.cfg.Now()
	c.mu.Lock()
	hosts := make(map[netip.AddrPort]*host, len(c.hosts))
	for at, h := range c.hosts {
		if h.idle(now) {
			delete(c.hosts, at)
			delete(c.sessions, h.sess.ours.session)
			h.close()
			continue
		}
		hosts[at] = h
	}
	c.mu.Unlock()
	c.askWitnesses(now, hosts)
	for at, h := range hosts {
		for _, o := range h.tick(now) {
			// What cannot be reached is what probes are to find out.
			_ = c.cfg.Socket.send([][]byte{o.b}, &conn.StdNetEndpoint{AddrPort: o.to})
		}
		if h.wantsStream(now) {
			c.tasks.Go(func() { c.open(ctx, h, at) })
		}
	}
	return len(hosts) > 0
}

// maxWitnesses is how many hosts are asked at once where this node is.
const maxWitnesses = 2

// askWitnesses keeps sessions with hosts that see this node from outside while
// another is in use and has no straight path: their echoes tell it where it is.
func (c *Carrier) askWitnesses(now time.Duration, hosts map[netip.AddrPort]*host) {
	var ids []peer.ID
	asked := map[netip.AddrPort]bool{}
	for at, h := range hosts {
		if !h.lost(now) {
			continue
		}
		if ids == nil {
			if ids = c.cfg.Witnesses(); len(ids) == 0 {
				return
			}
			ids = ids[:min(len(ids), maxWitnesses)]
			for _, id := range ids {
				asked[Address(id)] = true
			}
		}
		if asked[at] {
			continue // it is asked already, or there is nobody else to ask
		}
		for _, id := range ids {
			if w := c.session(id); w != nil {
				w.touch(now)
			}
		}
		return
	}
}

// session is the session with a host, from now on; nil: there are too many.
func (c *Carrier) session(id peer.ID) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := Address(id)
	if h := c.hosts[at]; h != nil {
		return h
	}
	return c.begin(id, at)
}
