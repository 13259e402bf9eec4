package p2p

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/formthefog/formation/p2p/exchange"
	"github.com/ipfs/boxo/blockstore"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Limits of what the network may send, in bytes unless said otherwise. The
// first two are those of the contract's page of limits and of the design.
const (
	// MaxGossip bounds one gossip message.
	MaxGossip = 64 << 10
	// MaxHello bounds the bytes a peer presents to be admitted.
	MaxHello = 16<<10 + 64
	// MaxReason bounds the text of a refusal; longer ones are cut.
	MaxReason = 256
	// MaxAddrs is how many addresses a node tells of itself. A machine with many
	// interfaces has more, and they would not fit what is published.
	MaxAddrs = 16
	// HelloTimeout is how long a connection may stay unproven.
	HelloTimeout = 10 * time.Second
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrRefused: one side did not admit the other. Always a *RefusedError.
	ErrRefused = errors.New("connection refused by membership check")
	// ErrClientOnly: a ClientOnly node does not gossip.
	ErrClientOnly = errors.New("not available on a client-only node")
	// ErrNotRunning: Run has not started yet, or has returned.
	ErrNotRunning = errors.New("p2p node is not running")
	// ErrTooLarge: a message is over MaxGossip.
	ErrTooLarge = errors.New("message too large")
	// ErrSubscribed: the topic already has a subscription.
	ErrSubscribed = errors.New("already subscribed")
	// ErrNoBlocks: the node was configured without Blocks.
	ErrNoBlocks = errors.New("node has no block exchange")
	// ErrNoNetwork: the peer is reachable but runs no network of this kind.
	ErrNoNetwork = errors.New("peer speaks no formation network")
)

// RefusedError says why a connection was not admitted. It is ErrRefused.
type RefusedError struct {
	Peer   peer.ID
	Reason string
	ByPeer bool // the remote refused us, rather than we it
}

func (e *RefusedError) Error() string {
	if e.ByPeer {
		return fmt.Sprintf("peer %s refused us: %s", e.Peer, e.Reason)
	}
	return fmt.Sprintf("refused peer %s: %s", e.Peer, e.Reason)
}

// Is makes every RefusedError an ErrRefused.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// ListenError says which address could not be listened on, and why.
type ListenError struct {
	Addr string
	Err  error
}

func (e *ListenError) Error() string { return fmt.Sprintf("listen on %s: %v", e.Addr, e.Err) }

func (e *ListenError) Unwrap() error { return e.Err }

// Admission decides who takes part. Its methods are called concurrently, and
// must not call back into the Node.
type Admission interface {
	// Hello returns the bytes to present to a peer, at most MaxHello.
	Hello(to peer.ID) ([]byte, error)
	// Admit judges the bytes a peer presented. The peer's ID is proven already.
	// nil admits this connection, and client says as what: as a client, which
	// takes no part in the DHT, gossip and Peers, whatever the peer says of
	// itself, or as what it says it is. The text of an error is told to the peer.
	Admit(ctx context.Context, from peer.ID, hello []byte) (client bool, err error)
	// Gone tells that the last connection on which Admit let the peer in has
	// closed.
	Gone(p peer.ID)
}

// Config is what a Node needs. Zero values are allowed where noted.
type Config struct {
	// Key is the node's identity.
	Key ed25519.PrivateKey
	// Network names the network in protocol IDs: 1 to 64 lower-case letters and
	// digits. formd uses the whole network ID in hexadecimal, so that a client
	// learns it from the peer it dials (Discover).
	Network string
	// Listen holds multiaddrs of TCP and QUIC (/udp/…/quic-v1). Port 0 asks for
	// a free port, and one that TCP and QUIC on the same IP share. Ignored by
	// a ClientOnly node; otherwise at least one is required.
	Listen []string
	// Announce replaces the addresses told to others, for a node behind a
	// forwarded port. Optional.
	Announce []string
	// Inner holds the prefixes of networks that are carried by this one: addresses
	// in them are not told, and not dialled. Optional.
	Inner []netip.Prefix
	// Bootstrap holds multiaddrs that end in /p2p/<peer ID>. Optional.
	Bootstrap []string
	// Dir keeps peers.json, the remembered peers. Empty: nothing is kept.
	Dir string
	// Blocks is served to admitted peers. nil: no block exchange.
	Blocks blockstore.Blockstore
	// Source answers bulk streams. Optional, and without effect if Blocks is nil.
	Source exchange.Source
	// MDNS finds and announces on the LAN. A machine without a usable
	// interface logs it at debug level and goes on.
	MDNS bool
	// ListenUDP opens QUIC's sockets, instead of the kernel's own: so that somebody
	// else shares the port. It is called with "udp4" or "udp6", once or more. Optional.
	ListenUDP func(network string, addr *net.UDPAddr) (net.PacketConn, error)
	// Simulated keeps the node off this machine's network: all it sends goes
	// through ListenUDP, which is required, and it has the addresses in Listen,
	// which are QUIC's, with an IP and a port each, and no others. Such a node
	// neither dials others back to tell them whether they can be reached, nor
	// learns its own addresses from peers; and it can run in virtual time.
	Simulated bool
	// Avoid says of a peer that there is to be no connection with it, neither dialled
	// nor accepted. Optional.
	Avoid func(p peer.ID) bool
	// Trace sees what gossip does, as the library tells it. Optional.
	Trace pubsub.RawTracer
	// Portmap asks the router for a port by UPnP or NAT-PMP.
	Portmap bool
	// ClientOnly makes a node that listens on nothing, serves no DHT record,
	// gossips nothing and remembers nobody: what a CLI needs.
	ClientOnly bool
	// Admission is required.
	Admission Admission
	// Logger is required to be non-nil only if the caller wants to see logs.
	Logger *slog.Logger

	// tune and allowed are for this package's tests.
	tune    tuning
	allowed func(p peer.ID, addr ma.Multiaddr, inbound bool) bool // asked of every connection
}

// tuning holds intervals which tests shorten. Zero fields take the defaults.
type tuning struct {
	hello      time.Duration // HelloTimeout
	backoffMin time.Duration // first retry of a lost peer
	backoffMax time.Duration // and the longest wait between two
	explore    time.Duration // how often a peer outside the wanted set is tried
	save       time.Duration // how long a change to peers.json may wait
	answer     time.Duration // how long Recheck waits for one
	relayEach  budget        // what one member may send through this node
	relayAll   budget        // and all together
}

func (t tuning) withDefaults() tuning {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.hello, HelloTimeout)
	set(&t.backoffMin, 500*time.Millisecond)
	set(&t.backoffMax, 30*time.Second)
	set(&t.explore, 20*time.Second)
	set(&t.save, 10*time.Second)
	set(&t.answer, 3*time.Second)
	if t.relayEach == (budget{}) {
		t.relayEach = budget{relayRate, relayBurst}
	}
	if t.relayAll == (budget{}) {
		t.relayAll = budget{relayAllRate, relayAllBurst}
	}
	return t
}

// parsed is the validated form of a Config.
type parsed struct {
	listen, announce []ma.Multiaddr
	bootstrap        []peer.AddrInfo
}

func (c *Config) validate() (parsed, error) {
	var p parsed
	if len(c.Key) != ed25519.PrivateKeySize {
		return p, fmt.Errorf("p2p: key has %d bytes, want %d", len(c.Key), ed25519.PrivateKeySize)
	}
	if !validNetwork(c.Network) {
		return p, fmt.Errorf("p2p: network %q: want 1 to 64 lower-case letters and digits", c.Network)
	}
	if c.Admission == nil {
		return p, errors.New("p2p: no Admission")
	}
	if c.Simulated && (c.ListenUDP == nil || c.MDNS || c.Portmap) {
		return p, errors.New("p2p: a simulated node has sockets that are handed in, and nothing else")
	}
	if !c.ClientOnly {
		if len(c.Listen) == 0 {
			return p, errors.New("p2p: nothing to listen on")
		}
		for _, s := range c.Listen {
			a, err := parseListen(s)
			if err != nil {
				return p, err
			}
			if ip, port, _ := ipPort(a); c.Simulated && (!has(a, ma.P_QUIC_V1) || ip.IsUnspecified() || port == 0) {
				return p, fmt.Errorf("p2p: listen %q: a simulated node has /ip4|ip6/ADDR/udp/PORT/quic-v1", s)
			}
			p.listen = append(p.listen, a)
		}
	}
	for _, s := range c.Announce {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return p, fmt.Errorf("p2p: announce %q: %w", s, err)
		}
		p.announce = append(p.announce, a)
	}
	for _, s := range c.Bootstrap {
		info, err := peer.AddrInfoFromString(s)
		if err != nil {
			return p, fmt.Errorf("p2p: bootstrap %q: %w", s, err)
		}
		p.bootstrap = append(p.bootstrap, *info)
	}
	return p, nil
}

func validNetwork(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return false
		}
	}
	return true
}

func parseListen(s string) (ma.Multiaddr, error) {
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, fmt.Errorf("p2p: listen %q: %w", s, err)
	}
	if _, _, ok := ipPort(a); !ok {
		return nil, fmt.Errorf("p2p: listen %q: want /ip4|ip6/ADDR/tcp/PORT or /ip4|ip6/ADDR/udp/PORT/quic-v1", s)
	}
	return a, nil
}
