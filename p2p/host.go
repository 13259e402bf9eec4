package p2p

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/formthefog/formation/p2p/exchange"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
)

const userAgent = "formation"

// The connection manager trims idle connections down to connLow when there are
// more than connHigh. wantPeers is far below: see book.
const (
	connLow   = 96
	connHigh  = 160
	connGrace = 30 * time.Second
)

// perIP bounds connections and their rate per IPv4 address or IPv6 /56. The
// library's defaults (8, and one each five seconds) refuse a handful of nodes
// or CLI calls behind one router.
const (
	perIPConns = 64
	perIPRate  = 20 // per second
	perIPBurst = 128
)

// hostOptions is what newHost needs beyond the configuration.
type hostOptions struct {
	gate    *gate
	gater   *connGater
	bytes   metrics.Reporter
	relays  autorelay.PeerSource
	refused func(p peer.ID, err error) // is told of streams over a limit
}

// newHost makes a libp2p host that listens on nothing yet.
func newHost(cfg *Config, p parsed, o hostOptions) (host.Host, error) {
	opts, err := options(cfg, p, o)
	if err != nil {
		return nil, err
	}
	sockets := &quicSockets{cfg: cfg}
	if cfg.ListenUDP != nil {
		opts = append(opts, libp2p.QUICReuse(sockets.open))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("p2p: start host: %w", err), sockets.Close())
	}
	return &socketHost{h, sockets}, nil
}

// options are those of the host, but for QUIC's sockets.
func options(cfg *Config, p parsed, o hostOptions) ([]libp2p.Option, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("p2p: key: %w", err)
	}
	resources, err := newResources(cfg, o)
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(connLow, connHigh, connmgr.WithGracePeriod(connGrace))
	if err != nil {
		return nil, fmt.Errorf("p2p: connection manager: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		// Without SO_REUSEPORT, so that a port taken by another node is an error.
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()),
		libp2p.Transport(quic.NewTransport),
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(conns),
		libp2p.ConnectionGater(o.gater),
		libp2p.BandwidthReporter(o.bytes),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.UserAgent(userAgent),
		libp2p.DisableMetrics(),
		libp2p.EnableRelay(), // to reach, and be reached, through members
	}
	opts = append(opts, libp2p.AddrsFactory(func(addrs []ma.Multiaddr) []ma.Multiaddr {
		if len(p.announce) > 0 {
			return p.announce
		}
		return outside(cfg.Inner, addrs)
	}))
	if !cfg.ClientOnly {
		opts = append(opts,
			libp2p.EnableHolePunching(),
			libp2p.EnableAutoRelayWithPeerSource(o.relays, autorelay.WithMinCandidates(1), autorelay.WithNumRelays(2), autorelay.WithBootDelay(10*time.Second)),
		)
		if cfg.Portmap {
			opts = append(opts, libp2p.NATPortMap())
		}
	}
	switch {
	case cfg.Simulated:
		opts = append(opts, libp2p.DisableIdentifyAddressDiscovery())
	case !cfg.ClientOnly:
		opts = append(opts, libp2p.EnableNATService()) // from sockets of its own
	}
	return opts, nil
}

// newResources scales the library's limits to this machine and lifts those that
// make the block exchange lose blocks.
func newResources(cfg *Config, o hostOptions) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	var partial rcmgr.PartialLimitConfig
	exchange.Limits(&partial, cfg.Network)
	limiter := rcmgr.NewFixedLimiter(partial.Build(scaling.AutoScale()))
	burst := rate.Limit{RPS: perIPRate, Burst: perIPBurst}
	rm, err := rcmgr.NewResourceManager(limiter,
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: perIPConns}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: perIPConns}, {PrefixLength: 48, ConnCount: 4 * perIPConns}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{ // loopback is this machine's own business
				{Prefix: netip.MustParsePrefix("127.0.0.0/8")},
				{Prefix: netip.MustParsePrefix("::1/128")},
			},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: burst}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: burst}},
				GracePeriod:      time.Minute,
			},
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("p2p: resource manager: %w", err)
	}
	return &gatedResources{ResourceManager: rm, gate: o.gate, refused: o.refused, hello: helloID(cfg.Network)}, nil
}

// relayResources: one circuit is not limited in time and bytes, as the library's
// 128 KiB in two minutes carry no SSH session; reservations, circuits, what a
// member sends by all of its own (see relayMeter) and, by the resource manager,
// streams are.
func relayResources() relay.Resources {
	r := relay.DefaultResources()
	r.Limit = nil
	r.MaxReservations = 64
	r.MaxReservationsPerIP = 16
	r.MaxCircuits = 16
	r.BufferSize = 16 << 10
	return r
}

// relayACL relays between admitted members only.
type relayACL struct{ gate *gate }

func (a relayACL) AllowReserve(p peer.ID, _ ma.Multiaddr) bool { return a.gate.knows(p) }

func (a relayACL) AllowConnect(src peer.ID, _ ma.Multiaddr, dest peer.ID) bool {
	return a.gate.knows(src) && a.gate.knows(dest)
}

// rankDials tries TCP first: measured, its bulk rate is about twice that of
// QUIC here. QUIC follows soon, for hole punching and firewalls that pass UDP
// only, and relays last.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	const quicDelay, relayDelay = 250 * time.Millisecond, time.Second
	out := make([]network.AddrDelay, 0, len(addrs))
	direct, hasTCP := false, false
	for _, a := range addrs {
		if !isRelayAddr(a) {
			direct = true
			hasTCP = hasTCP || has(a, ma.P_TCP)
		}
	}
	for _, a := range addrs {
		var d time.Duration
		switch {
		case isRelayAddr(a) && direct:
			d = relayDelay
		case has(a, ma.P_QUIC_V1) && hasTCP:
			d = quicDelay
		}
		out = append(out, network.AddrDelay{Addr: a, Delay: d})
	}
	return out
}

func has(a ma.Multiaddr, code int) bool {
	_, err := a.ValueForProtocol(code)
	return err == nil
}

func isRelayAddr(a ma.Multiaddr) bool { return has(a, ma.P_CIRCUIT) }

func isRelayed(c network.Conn) bool { return isRelayAddr(c.RemoteMultiaddr()) }

// supportsRelay says whether a peer offers to relay.
func supportsRelay(h host.Host, p peer.ID) bool {
	got, err := h.Peerstore().SupportsProtocols(p, circuit.ProtoIDv2Hop)
	return err == nil && len(got) > 0
}

// connGater keeps the host quiet before Run and after it, and shows tests each
// address that is about to be dialled or has been accepted.
type connGater struct {
	open    func() bool
	refused func(p peer.ID) time.Duration                      // for how long; such a peer is not dialled
	allowed func(p peer.ID, a ma.Multiaddr, inbound bool) bool // nil: all are
	avoid   func(p peer.ID) bool                               // nil: nobody is
	inner   []netip.Prefix                                     // not dialled
}

func (g *connGater) InterceptPeerDial(p peer.ID) bool {
	return g.open() && g.refused(p) == 0 && !g.avoids(p)
}

func (g *connGater) avoids(p peer.ID) bool { return g.avoid != nil && g.avoid(p) }

func (g *connGater) InterceptAddrDial(p peer.ID, a ma.Multiaddr) bool {
	return !inside(g.inner, a) && (g.allowed == nil || g.allowed(p, a, false))
}

func (g *connGater) InterceptAccept(network.ConnMultiaddrs) bool { return g.open() }

func (g *connGater) InterceptSecured(dir network.Direction, p peer.ID, c network.ConnMultiaddrs) bool {
	return dir == network.DirOutbound || !g.avoids(p) && (g.allowed == nil || g.allowed(p, c.RemoteMultiaddr(), true))
}

func (g *connGater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// clearDialBackoff makes the next dial real: the library's own back-off grows
// to five minutes and would hide a healed partition.
func clearDialBackoff(h host.Host, p peer.ID) {
	if s, ok := h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
}
