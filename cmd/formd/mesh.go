package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	meshview "github.com/formthefog/formation/cmd/internal/mesh"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/p2p/fair"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
)

// protoMesh carries WireGuard datagrams between hosts where no straight path
// does, and tells them how to find one (docs/wire.md).
const protoMesh = "wg/1"

// Streams of it at once, from one peer and from all. A peer needs one; while one
// ends the next may have begun.
const (
	maxMeshOfOne = 3
	maxMesh      = 1024
)

var errManyMesh = errors.New("too many streams of the mesh")

// mesh is this node's part in formnet: its key, its UDP port, the carrier that
// brings datagrams to and from the hosts of others.
type mesh struct {
	key     wg.Key // private
	socket  *carrier.Socket
	carrier *carrier.Carrier
	places  *fair.Places
	log     *slog.Logger
	space   wg.Space
	host    *hostDevice // nil: there is none
	none    string      // why
	names   *meshNames  // nil without host
	wanted  bool        // it was tried

	address6 netip.Addr // of the node

	mu       sync.Mutex
	stations map[string]carrier.Station
	device   wg.Key               // public, of host; zero: there is none
	hosts    map[string][]peer.ID // by who talks with them
	told     bool                 // a view was looked at
	gone     bool                 // host's interface was removed
	address4 netip.Addr           // that the node claims
	peers    []meshview.Peer      // of host
	inTheWay []netip.Prefix       // that the machine reaches otherwise
	linkErr  error
}

// openCarrier makes the carrier of a socket that is open.
func (d *formd) openCarrier() (err error) {
	m := d.mesh
	m.places, m.hosts, m.log = fair.New(maxMesh, maxMeshOfOne), map[string][]peer.ID{}, d.log.With("part", "mesh")
	m.carrier, err = carrier.New(carrier.Config{
		Self: peer.ID(d.id.self().PeerID()), Socket: m.socket, Streams: meshStreams{d.node}, Now: boottime.Now, Log: m.log,
		Inner: m.prefixes(), Witnesses: d.node.Outside,
		Addresses: func() []netip.AddrPort { return udpAddrs(d.node.Addrs()) },
		Seen:      func(host peer.ID) []netip.AddrPort { return seenAt(d.node.PeerInfo(), host) },
	})
	return err
}

// setGuests says what guests are behind the port, by name, and with which hosts
// they talk: all of them.
func (m *mesh) setGuests(stations map[string]carrier.Station, hosts []peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stations, m.hosts["guests"] = stations, hosts
	m.apply()
}

// setDevice says what the public key of this node's own device is, zero for none,
// and with which hosts it talks.
func (m *mesh) setDevice(public wg.Key, hosts []peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.device, m.hosts["device"] = public, hosts
	m.apply()
}

// apply tells the carrier; m.mu is held.
func (m *mesh) apply() {
	var all []peer.ID
	for _, ids := range m.hosts {
		all = append(all, ids...)
	}
	m.carrier.Hosts(all)
	device, stations := m.device, m.stations
	if m.host != nil && m.host.deliver != nil && device != (wg.Key{}) {
		stations = make(map[string]carrier.Station, len(m.stations)+1)
		maps.Copy(stations, m.stations)
		stations[kernelStation] = carrier.Station{Public: device, Deliver: m.host.deliver}
		device = wg.Key{}
	}
	m.carrier.Stations(device, stations)
}

// handler serves protoMesh to whoever stays by right.
func (m *mesh) handler(stays func(peer.ID) bool, refused func(from peer.ID, reason string, err error)) func(context.Context, peer.ID, net.Conn) {
	return func(_ context.Context, from peer.ID, c net.Conn) {
		defer c.Close()
		if !stays(from) {
			return // its connection is about to be cut
		}
		place := m.places.Enter(from, func() { c.Close() })
		if place == nil {
			refused(from, refusedRate, errManyMesh)
			return
		}
		defer m.places.Leave(place)
		m.carrier.Accept(from, c)
	}
}

// meshStreams opens streams of protoMesh.
type meshStreams struct{ node *p2p.Node }

func (s meshStreams) OpenStream(ctx context.Context, host peer.ID) (io.ReadWriteCloser, error) {
	return s.node.Open(ctx, host, protoMesh)
}

// udpAddrs are the UDP addresses among multiaddrs, in their order.
func udpAddrs(addrs []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		parts := strings.Split(a, "/") // "", ip4, ADDRESS, udp, PORT, quic-v1, …
		if len(parts) < 6 || parts[3] != "udp" || parts[5] != "quic-v1" || strings.Contains(a, "/p2p-circuit") {
			continue
		}
		if at, err := netip.ParseAddrPort(net.JoinHostPort(parts[2], parts[4])); err == nil {
			out = append(out, at)
		}
	}
	return out
}

// seenAt is from where a host's connections come.
func seenAt(peers []p2p.PeerInfo, host peer.ID) []netip.AddrPort {
	for _, p := range peers {
		if p.ID == host {
			return udpAddrs(p.Addrs)
		}
	}
	return nil
}
