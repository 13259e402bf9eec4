package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	libp2phost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/embedded"
	"github.com/formthefog/formation/wg/wgtest"
)

// world is some nodes on this machine's loopback, each with a carrier, a device
// over a stack of its own, and streams to all others.
type world struct {
	t     *testing.T
	began time.Time

	mu      sync.Mutex
	nodes   map[peer.ID]*node
	refused bool // streams
	witness []peer.ID
}

type node struct {
	id      peer.ID
	world   *world
	socket  *Socket
	carrier *Carrier
	device  *embedded.Device
	net     *netstack.Net
	public  wg.Key
	address netip.Addr
	tells   []netip.AddrPort // where it says that it is
}

func newWorld(t *testing.T) *world {
	return &world{t: t, began: time.Now(), nodes: map[peer.ID]*node{}}
}

// add makes node n; reachable says whether it tells its UDP address.
func (w *world) add(n byte, reachable bool) *node {
	w.t.Helper()
	home := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	socket, err := Listen(0, home)
	if err != nil {
		w.t.Fatal(err)
	}
	if !reachable {
		home = netip.Addr{}
	}
	return w.join(n, socket, home)
}

// join makes node n with that socket, which tells that it is at home.
func (w *world) join(n byte, socket *Socket, home netip.Addr) *node {
	t := w.t
	t.Helper()
	v := &node{id: peer.ID(rune('a' + n)), world: w, socket: socket, address: netip.AddrFrom16([16]byte{0: 0xfd, 15: n + 1})}
	if home.IsValid() {
		v.tells = []netip.AddrPort{netip.AddrPortFrom(home, v.socket.Port())}
	}
	var err error
	if v.carrier, err = New(Config{Self: v.id, Socket: v.socket, Streams: v, Addresses: func() []netip.AddrPort { return v.tells }, Witnesses: w.witnesses,
		Now: func() time.Duration { return time.Since(w.began) }}); err != nil {
		t.Fatal(err)
	}
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	v.public = private.PublicKey()
	v.carrier.Stations(v.public, nil)
	dev, stack, err := netstack.CreateNetTUN([]netip.Addr{v.address}, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	v.net = stack
	if v.device, err = embedded.Open(embedded.Config{TUN: dev, Bind: v.carrier.Bind(), Key: private}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- v.carrier.Run(ctx) }()
	w.until("it accepts streams", func() bool {
		v.carrier.mu.RLock()
		defer v.carrier.mu.RUnlock()
		return v.carrier.ctx != nil
	})
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		v.device.Close()
		if err := v.socket.Close(); err != nil {
			t.Error(err)
		}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[v.id] = v
	return v
}

func (w *world) witnesses() []peer.ID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.witness
}

// OpenStream implements Streams.
func (v *node) OpenStream(_ context.Context, host peer.ID) (io.ReadWriteCloser, error) {
	v.world.mu.Lock()
	defer v.world.mu.Unlock()
	other := v.world.nodes[host]
	if other == nil || v.world.refused {
		return nil, errors.New("nobody is there")
	}
	a, b := net.Pipe()
	go other.carrier.Accept(v.id, b)
	return a, nil
}

func (w *world) knowEachOther() {
	w.t.Helper()
	var ids []peer.ID
	for id := range w.nodes {
		ids = append(ids, id)
	}
	for _, v := range w.nodes {
		v.carrier.Hosts(ids)
		for _, o := range w.nodes {
			if o == v {
				continue
			}
			if err := v.device.Configure([]wgtypes.PeerConfig{{PublicKey: o.public, Endpoint: net.UDPAddrFromAddrPort(Address(o.id)),
				AllowedIPs: wgtest.Routes(o.address)}}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// echo sends size bytes to the other and back; it returns when they are there.
func (v *node) echo(o *node, size int) {
	v.world.t.Helper()
	wgtest.Echo(v.world.t, v.net, o.net, o.address, slices.Repeat([]byte("0123456789abcdef"), size/16))
}

// until asks again and again.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			w.t.Fatalf("it never came to this: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (v *node) straight(o *node) bool {
	h := v.carrier.existing(Address(o.id))
	return h != nil && h.route.Load().straight.IsValid() && !h.route.Load().stream
}

func TestStreamFirstThenStraight(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(0, true), w.add(1, false) // b is found by its probes
	w.knowEachOther()
	a.echo(b, 16)
	w.until("both send straight", func() bool { return a.straight(b) && b.straight(a) })
	w.mu.Lock()
	w.refused = true
	for _, v := range w.nodes {
		for _, h := range v.carrier.hosts {
			h.close() // the streams alone
		}
	}
	w.mu.Unlock()
	a.echo(b, 1<<18)
	b.echo(a, 1<<18)
	if !a.straight(b) || !b.straight(a) {
		t.Error("they no longer send straight")
	}
}

// Where UDP does not pass, all goes by the stream.
func TestStreamAlone(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(0, false), w.add(1, false)
	w.knowEachOther()
	a.echo(b, 1<<18)
	if a.straight(b) || b.straight(a) {
		t.Error("they send straight to where nobody is known to be")
	}
	if peers, err := a.device.Peers(); err != nil || peers[0].Endpoint != Address(b.id) {
		t.Errorf("WireGuard sees %v, %v", peers, err)
	}
}

// A plain WireGuard client, which knows the port alone, is answered by the node,
// and by a guest of it; the guest's packets pass the node by.
func TestPlainClientAndGuest(t *testing.T) {
	w := newWorld(t)
	a := w.add(0, true)
	var guest, phone *wgtest.Station
	wire := wgtest.NewWire(func(b []byte, from, to netip.AddrPort) bool {
		a.carrier.Send("guest", b, to)
		return false
	})
	guest = wgtest.NewStation(t, wire, 77, "guest")
	a.carrier.Stations(a.public, map[string]Station{"guest": {Public: guest.Public,
		Deliver: func(b []byte, from netip.AddrPort) { wire.Deliver(b, from, guest.At) }}})

	outside, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	lan := wgtest.NewWire(func(b []byte, _, to netip.AddrPort) bool {
		if _, err := outside.WriteToUDPAddrPort(b, to); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		return false
	})
	phone = wgtest.NewStation(t, lan, 78, "phone")
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := outside.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			lan.Deliver(buf[:n], from, phone.At)
		}
	}()
	port := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.socket.Port())
	phone.Knows(t, guest, port)
	guest.Knows(t, phone)
	phone.Echo(t, guest)
	guest.Echo(t, phone)

	node := &wgtest.Station{Device: a.device, Net: a.net, Public: a.public, Address: a.address}
	phone.Knows(t, node, port)
	node.Knows(t, phone)
	phone.Echo(t, node)
}

// Guests of one host, and the host's device, reach each other by its address, and
// without a socket.
func TestStationsOfOneHost(t *testing.T) {
	w := newWorld(t)
	a := w.add(0, true)
	stations, guests := map[string]Station{}, []*wgtest.Station{}
	for i, name := range []string{"one", "two"} {
		wire := wgtest.NewWire(func(b []byte, _, to netip.AddrPort) bool {
			a.carrier.Send(name, b, to)
			return false
		})
		g := wgtest.NewStation(t, wire, byte(77+i), name)
		stations[name] = Station{Public: g.Public, Deliver: func(b []byte, from netip.AddrPort) { wire.Deliver(b, from, g.At) }}
		guests = append(guests, g)
	}
	a.carrier.Stations(a.public, stations)
	one, two := guests[0], guests[1]
	node := &wgtest.Station{Device: a.device, Net: a.net, Public: a.public, Address: a.address}
	one.Knows(t, two, Address(a.id))
	two.Knows(t, one, Address(a.id))
	one.Echo(t, two)
	two.Echo(t, one)
	node.Knows(t, one, Address(a.id))
	one.Knows(t, node, Address(a.id))
	node.Echo(t, one)
	one.Echo(t, node)
	if n := len(a.carrier.Paths()); n != 0 {
		t.Errorf("%d sessions with hosts", n)
	}
}

// A device that is closed leaves the socket to QUIC and the guests; another one
// takes it up again.
func TestDeviceComesAndGoes(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(0, true), w.add(1, true)
	share := a.quic()
	sender, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	buf := make([]byte, 100)
	hear := func() {
		t.Helper()
		if _, err := sender.WriteToUDPAddrPort([]byte("\xc3quic"), netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.socket.Port())); err != nil {
			t.Fatal(err)
		}
		if err := share.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, from, err := share.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "\xc3quic" || from.String() != sender.LocalAddr().String() {
			t.Fatalf("QUIC read %q from %v: %v", buf[:n], from, err)
		}
	}
	hear()
	a.device.Close()
	hear()
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	dev, stack, err := netstack.CreateNetTUN([]netip.Addr{a.address}, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	a.net, a.public = stack, private.PublicKey()
	if a.device, err = embedded.Open(embedded.Config{TUN: dev, Bind: a.carrier.Bind(), Key: private}); err != nil {
		t.Fatal(err)
	}
	a.carrier.Stations(a.public, nil)
	hear()
	w.knowEachOther()
	b.echo(a, 1<<16)
	if _, err := embedded.Open(embedded.Config{TUN: mustTUN(t), Bind: a.carrier.Bind(), Key: private}); err == nil {
		t.Error("two devices share the socket")
	}
	if _, err := share.WriteTo([]byte("\xc3back"), sender.LocalAddr()); err != nil {
		t.Error(err)
	}
	if n, _, err := sender.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "\xc3back" {
		t.Errorf("QUIC's answer: %q, %v", buf[:n], err)
	}
	done := make(chan error)
	if err := share.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _, err := share.ReadFrom(buf)
		done <- err
	}()
	if err := share.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if err := <-done; !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a read past its deadline: %v", err)
	}
	if err := share.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := share.ReadFrom(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	share = a.quic() // who closed it may have it again
	hear()
	b.echo(a, 16)
}

// quic is the node's share of its socket for QUIC.
func (v *node) quic() net.PacketConn {
	v.world.t.Helper()
	c, err := v.socket.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(v.socket.Port())})
	if err != nil {
		v.world.t.Fatal(err)
	}
	return c
}

// libp2p's QUIC shares the socket with a device that is busy.
func TestQUICBesideWireGuard(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(0, true), w.add(1, true)
	w.knowEachOther()
	var hosts [2]libp2phost.Host
	for i, v := range []*node{a, b} {
		var err error
		if hosts[i], err = libp2p.New(libp2p.Transport(quic.NewTransport), libp2p.DisableRelay(), libp2p.DisableMetrics(),
			libp2p.QUICReuse(quicreuse.NewConnManager, quicreuse.OverrideListenUDP(v.socket.ListenUDP)),
			libp2p.ListenAddrStrings(fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", v.socket.Port()))); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { hosts[i].Close() })
	}
	hosts[1].SetStreamHandler("/echo", func(s network.Stream) {
		_, _ = io.Copy(s, s) // the other end judges
		s.Close()
	})
	if err := hosts[0].Connect(t.Context(), peer.AddrInfo{ID: hosts[1].ID(), Addrs: hosts[1].Addrs()}); err != nil {
		t.Fatal(err)
	}
	conns := hosts[0].Network().ConnsToPeer(hosts[1].ID())
	if from := fmt.Sprint(conns[0].LocalMultiaddr()); !strings.Contains(from, fmt.Sprintf("/udp/%d/", a.socket.Port())) {
		t.Errorf("QUIC goes by %s, not by the shared port", from)
	}
	done := make(chan error)
	go func() {
		s, err := hosts[0].NewStream(t.Context(), hosts[1].ID(), "/echo")
		if err != nil {
			done <- err
			return
		}
		sent := slices.Repeat([]byte("quic"), 1<<16)
		go func() {
			_, _ = s.Write(sent)
			s.CloseWrite()
		}()
		got, err := io.ReadAll(s)
		if err == nil && !slices.Equal(got, sent) {
			err = fmt.Errorf("%d bytes came back of %d", len(got), len(sent))
		}
		done <- err
	}()
	a.echo(b, 1<<18)
	if err := <-done; err != nil {
		t.Error("beside it, QUIC: ", err)
	}
}

func mustTUN(t *testing.T) tun.Device {
	t.Helper()
	dev, _, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr("fd00::99")}, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// Those who come by themselves leave room for those who are wanted.
func TestStrangersLeaveRoom(t *testing.T) {
	w := newWorld(t)
	a := w.add(0, true)
	a.carrier.Hosts([]peer.ID{"wanted"})
	for i := range maxOthers + 1 {
		if h := a.carrier.session(peer.ID(fmt.Sprint("stranger", i))); (h != nil) != (i < maxOthers) {
			t.Fatalf("stranger %d has a session: %v", i, h != nil)
		}
	}
	if a.carrier.hostAt(Address("wanted")) == nil || a.carrier.hostAt(Address("other")) != nil {
		t.Error("the wanted host has no place, or another has one")
	}
}

// An address is a host's that proved it, else one's whose probes come from there. Who
// only says that it is somewhere gets nothing of what goes there.
func TestWhoseAddress(t *testing.T) {
	w := newWorld(t)
	c := w.add(0, false).carrier
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port) }
	begin := func(id peer.ID, candidates ...*candidate) netip.AddrPort {
		c.mu.Lock()
		defer c.mu.Unlock()
		h := c.begin(id, Address(id))
		h.sess.candidates = candidates
		return Address(id)
	}
	x := begin("x", &candidate{at: at(1), ok: true}, &candidate{at: at(2)}, &candidate{at: at(3), named: true}, &candidate{at: at(4), named: true})
	y := begin("y", &candidate{at: at(1)}, &candidate{at: at(4), ok: true, named: true})
	c.remap()
	for port, want := range map[uint16]netip.AddrPort{1: x, 2: x, 3: at(3), 4: y, 5: at(5)} {
		if got := c.known(&endpoint{to: at(port)}).to; got != want {
			t.Errorf("what is sent to %s goes to %s, not %s", at(port), got, want)
		}
	}
}

// Devices that go by bare addresses of hosts reach them by a stream all the same where
// UDP has ended.
func TestBareAddressIsTheHost(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(0, true), w.add(1, true)
	w.knowEachOther()
	a.echo(b, 16)
	w.until("both send straight", func() bool { return a.straight(b) && b.straight(a) })
	for v, o := range map[*node]*node{a: b, b: a} {
		if err := v.device.Configure([]wgtypes.PeerConfig{{PublicKey: o.public, Endpoint: net.UDPAddrFromAddrPort(o.tells[0])}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range w.nodes { // no probe arrives, nor anything else by UDP
		v.socket.handler.Store(&handler{probe: func([]byte, netip.AddrPort) {}, datagram: func(_ []byte, from netip.AddrPort) (netip.AddrPort, bool) { return from, false }})
	}
	w.until("none sends straight", func() bool { return !a.straight(b) && !b.straight(a) })
	a.echo(b, 1<<10)
}
