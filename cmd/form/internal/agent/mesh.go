package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/formthefog/formation/cmd/internal/mesh"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
	"github.com/formthefog/formation/wg/dns"
	"github.com/formthefog/formation/wg/embedded"
)

// Swarm is the device's way to the nodes.
type Swarm interface {
	// Testimony asks a node for what it knows of the owner's mesh.
	Testimony(ctx context.Context) (Testimony, error)
	// OpenStream opens a stream of the mesh to a host.
	OpenStream(ctx context.Context, host peer.ID) (io.ReadWriteCloser, error)
	// Seen is at which UDP addresses a host is connected.
	Seen(host peer.ID) []netip.AddrPort
	// Outside are nodes that see the device from outside of its NAT, best first.
	Outside() []peer.ID
}

// Config is what a [Mesh] needs; all but TUN and Log must be set.
type Config struct {
	Identity
	Key   wg.Key // private
	Swarm Swarm
	// TUN makes the interface for a device with those addresses. nil: a network stack
	// in this process, over which Dial and Reach go.
	TUN func(addresses []netip.Addr) (tun.Device, error)
	Now func() time.Duration // since boot
	Log *slog.Logger
}

const (
	// MTU is what every path carries (design §8).
	MTU = 1280
	// refresh is how often the nodes are asked for news, and retryMost for how long
	// at most they are not after failures.
	refresh   = 10 * time.Second
	retryMost = 30 * time.Second
	// askTimeout bounds one question.
	askTimeout = 20 * time.Second
	// keepalive holds the path of a connection that says nothing: hosts forget one
	// after minutes, NATs sooner.
	keepalive = 25 * time.Second
	// pingEvery is between the first two echoes, pingMost between later ones at most.
	pingEvery = 200 * time.Millisecond
	pingMost  = 2 * time.Second
	// dial4Timeout bounds an attempt by IPv4.
	dial4Timeout = 5 * time.Second
)

// ErrNoPeer: no replica or node of that kind is the device's peer.
var ErrNoPeer = errors.New("no such replica or node is on the mesh")

// Mesh is a device and its peers. Its methods may be called by several goroutines.
type Mesh struct {
	cfg     Config
	space   wg.Space
	address netip.Addr // IPv6
	socket  *carrier.Socket
	carrier *carrier.Carrier
	device  *embedded.Device
	mesh    *wg.Mesh
	stack   *netstack.Net // nil with a TUN
	ask     chan chan struct{}
	told    chan struct{} // capacity 1: news for News
	retry   chan Peer     // that are silent

	mu      sync.Mutex
	known   Roster
	uses    map[wg.Key]int // connections and attempts
	err     error          // of the last question
	silence silence
}

// New opens the device and its UDP port; nothing happens before [Mesh.Run], which
// also releases them.
func New(cfg Config) (*Mesh, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	space, err := wg.NewSpace(cfg.Network, cfg.Full().Prefix4)
	if err != nil {
		return nil, err
	}
	m := &Mesh{
		cfg: cfg, space: space, address: cfg.Identity.Address(space),
		ask: make(chan chan struct{}), told: make(chan struct{}, 1), retry: make(chan Peer, maxTries), uses: map[wg.Key]int{},
	}
	if m.socket, err = carrier.Listen(0, netip.Addr{}); err != nil {
		return nil, err
	}
	if err := m.open(); err != nil {
		return nil, errors.Join(err, m.socket.Close())
	}
	return m, nil
}

// bytes is the identity from which the device's address follows (docs/wire.md).
func (i Identity) bytes() []byte {
	return append(append([]byte("d"), i.Owner[:]...), i.Device[:]...)
}

// Address is the device's in a mesh.
func (i Identity) Address(space wg.Space) netip.Addr { return space.Address6(i.bytes()) }

// Address4 is the device's IPv4 address in a mesh, unless a replica has it.
func (i Identity) Address4(space wg.Space) netip.Addr { return space.Candidate4(i.bytes(), 0) }

func (m *Mesh) open() (err error) {
	m.carrier, err = carrier.New(carrier.Config{
		Socket: m.socket, Streams: m.cfg.Swarm, Addresses: m.own, Seen: m.cfg.Swarm.Seen, Witnesses: m.cfg.Swarm.Outside, Now: m.cfg.Now, Log: m.cfg.Log,
	})
	if err != nil {
		return err
	}
	var dev tun.Device
	if m.cfg.TUN != nil {
		dev, err = m.cfg.TUN(m.Addresses())
	} else {
		dev, m.stack, err = netstack.CreateNetTUN(m.Addresses(), nil, MTU)
	}
	if err != nil {
		return fmt.Errorf("mesh: interface: %w", err)
	}
	if m.device, err = embedded.Open(embedded.Config{TUN: dev, Bind: m.carrier.Bind(), Key: m.cfg.Key, Log: m.cfg.Log}); err != nil {
		return err
	}
	m.carrier.Stations(m.cfg.Key.PublicKey(), nil)
	if m.mesh, err = wg.New(wg.Config{Device: m.device, Space: m.space, Log: m.cfg.Log}); err != nil {
		m.device.Close()
	}
	return err
}

// own is where this machine may be reached: its addresses, at the mesh's port.
func (m *Mesh) own() []netip.AddrPort {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		m.cfg.Log.Debug("addresses of this machine", "err", err)
		return nil
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLinkLocalUnicast() || m.space.Contains(p.Addr()) {
			continue
		}
		out = append(out, netip.AddrPortFrom(p.Addr(), m.socket.Port()))
	}
	return out
}

// Address is the device's own; it is IPv6.
func (m *Mesh) Address() netip.Addr { return m.address }

// Addresses are Address and the IPv4 address.
func (m *Mesh) Addresses() []netip.Addr {
	return []netip.Addr{m.address, m.cfg.Identity.Address4(m.space)}
}

// Space is the addresses of the mesh.
func (m *Mesh) Space() wg.Space { return m.space }

// Device is the WireGuard device.
func (m *Mesh) Device() *embedded.Device { return m.device }

// Run keeps the device's peers those that the nodes prove, until ctx ends or the
// device does.
func (m *Mesh) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.carrier.Run(ctx) })
	g.Go(func() error { return m.mesh.Run(ctx) })
	g.Go(func() error { m.follow(ctx); return nil })
	if m.stack != nil {
		g.Go(func() error { m.tryAgain(ctx); return nil })
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-m.device.Done():
			return errors.New("mesh: the device has ended")
		}
	})
	err := g.Wait()
	m.device.Close()
	return errors.Join(err, m.socket.Close())
}

// follow asks for news, regularly and whenever somebody wants to know.
func (m *Mesh) follow(ctx context.Context) {
	wait := refresh
	for {
		err := m.update(ctx)
		if ctx.Err() != nil {
			return
		}
		if wait = refresh; err != nil {
			m.cfg.Log.Warn("mesh: no news of the peers", "err", err)
			wait = retryMost
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case done := <-m.ask:
			close(done)
		}
	}
}

// update asks once, and makes those peers that are proved. Without an answer the
// peers stay.
func (m *Mesh) update(ctx context.Context) error {
	actx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	t, err := m.cfg.Swarm.Testimony(actx)
	m.mu.Lock()
	known := m.known
	m.mu.Unlock()
	if err == nil {
		known, err = Judge(m.cfg.Identity, m.cfg.Key.PublicKey(), m.space, t.After(known))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err = err; err != nil && !errors.Is(err, ErrUnlisted) {
		return err
	}
	m.known = known
	m.apply()
	select {
	case m.told <- struct{}{}:
	default:
	}
	return err
}

// apply programs the peers; m.mu is held.
func (m *Mesh) apply() {
	peers := make([]mesh.Peer, len(m.known.Peers))
	for i, p := range m.known.Peers {
		peers[i] = p.Peer
	}
	want := mesh.Wanted(peers)
	for i, w := range want {
		if m.uses[w.Key] > 0 {
			want[i].Keepalive = keepalive
		}
	}
	m.carrier.Hosts(mesh.Hosts(peers))
	if err := m.mesh.Set(want); err != nil {
		m.cfg.Log.Warn("mesh: peers left out", "err", err)
	}
}

// News yields when the peers may have changed.
func (m *Mesh) News() <-chan struct{} { return m.told }

// Peers are the device's peers, and what was wrong with the last question for them.
func (m *Mesh) Peers() ([]Peer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known.Peers, m.err
}

// Names are those of the owner's replicas on the mesh, and what is wrong with some.
func (m *Mesh) Names() ([]dns.Name, []error) {
	m.mu.Lock()
	book := m.known.Book
	m.mu.Unlock()
	if book == nil {
		return nil, nil
	}
	return book.Names(nil)
}

// use counts who needs the peer's path, until the function it returns is called.
func (m *Mesh) use(key wg.Key) (done func()) {
	count := func(by int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		before := m.uses[key]
		if m.uses[key] = before + by; m.uses[key] == 0 {
			delete(m.uses, key)
		}
		if before == 0 || m.uses[key] == 0 {
			m.apply()
		}
	}
	count(1)
	return sync.OnceFunc(func() { count(-1) })
}

// lookup is the peer that is meant; one that is not known is asked for.
func (m *Mesh) lookup(ctx context.Context, t Target) (Peer, error) {
	for asked := false; ; asked = true {
		peers, err := m.Peers()
		if p, ok := find(peers, t); ok {
			return p, nil
		}
		if asked {
			return Peer{}, errors.Join(ErrNoPeer, err)
		}
		if err := m.Refresh(ctx); err != nil {
			return Peer{}, err
		}
	}
}

// Refresh asks for news now, and returns when the answer has been judged.
func (m *Mesh) Refresh(ctx context.Context) error {
	// The first of the two rounds may have begun before.
	for range 2 {
		done := make(chan struct{})
		select {
		case m.ask <- done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Reached is a peer that has answered over the mesh. It must be closed.
type Reached struct {
	m    *Mesh
	peer Peer
	done func()
}

// Reach finds the peer that is meant and waits until it answers. When hasty, the
// error is at once ErrSilent for one that did not answer lately.
func (m *Mesh) Reach(ctx context.Context, t Target, hasty bool) (*Reached, error) {
	if m.stack == nil {
		return nil, errors.New("mesh: the device is an interface of the system's")
	}
	p, err := m.lookup(ctx, t)
	if err != nil {
		return nil, err
	}
	if hasty && m.isSilent(p) {
		return nil, ErrSilent
	}
	r := &Reached{m: m, peer: p, done: m.use(wg.Key(p.Key))}
	echoes, err := m.ping(ctx, p.Address6)
	m.answered(wg.Key(p.Key), echoes, err)
	if err != nil {
		r.Close()
		m.again(p)
		return nil, fmt.Errorf("%s does not answer on the mesh: %w", p, err)
	}
	return r, nil
}

// Close gives the path up; connections that Dial has made keep it.
func (r *Reached) Close() { r.done() }

// Peer is who was reached.
func (r *Reached) Peer() Peer { return r.peer }

// Dial connects to a TCP port of the peer, by IPv6, and where nothing listens on
// that by IPv4. The connection has CloseWrite. The error is ErrRefused when nothing
// listens.
func (r *Reached) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	c, err := r.m.stack.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(r.peer.Address6, port))
	if isRefused(err) {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
		if by4, err4 := r.dial4(ctx, port); err4 == nil {
			c, err = by4, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("port %d of %s: %w", port, r.peer, err)
	}
	return &using{halfCloser: c, done: r.m.use(wg.Key(r.peer.Key))}, nil
}

// dial4 connects by IPv4. It is not waited for long: a peer that has given the
// address to somebody else does not answer.
func (r *Reached) dial4(ctx context.Context, port uint16) (*gonet.TCPConn, error) {
	if !r.peer.Address4.IsValid() {
		return nil, ErrRefused
	}
	ctx, cancel := context.WithTimeout(ctx, dial4Timeout)
	defer cancel()
	return r.m.stack.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(r.peer.Address4, port))
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// using is a connection whose peer's path is kept.
type using struct {
	halfCloser
	done func()
}

func (u *using) Close() error {
	u.done()
	return u.halfCloser.Close()
}

// ping returns when the address has answered an ICMPv6 echo, and how many there
// were. Each has a socket of its own, as a netstack.PingConn whose answer is there before Read waits for it
// never tells of one.
func (m *Mesh) ping(ctx context.Context, at netip.Addr) (echoes int, err error) {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan error, 1)
	for wait := pingEvery; ; wait = min(wait+wait/4, pingMost) {
		echoes++
		asking.Go(func() {
			err := m.echo(ctx, at)
			select {
			case answered <- err:
			default: // one is enough
			}
		})
		select {
		case err := <-answered:
			return echoes, err
		case <-ctx.Done():
			return echoes, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// echo asks once, and waits for the answer as long as ctx lasts.
func (m *Mesh) echo(ctx context.Context, at netip.Addr) error {
	c, err := m.stack.DialPingAddr(m.address, at)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })() // which ends Read
	if _, err := c.Write([]byte{icmp6Echo, 0, 0, 0, 0, 0, 0, 1, 'f', 'o', 'r', 'm'}); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, MTU))
	return errors.Join(ctx.Err(), err)
}

// icmp6Echo is the type of an echo request (RFC 4443).
const icmp6Echo = 128
