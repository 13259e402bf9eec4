package p2p

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/formthefog/formation/p2p/exchange"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"golang.org/x/sync/errgroup"
)

// Node is one member's presence on the network. Its methods may be called
// concurrently.
type Node struct {
	cfg    Config
	tune   tuning
	log    *slog.Logger
	ctx    context.Context // ends when Run ends
	cancel context.CancelFunc
	state  atomic.Int32 // idle, open, closed
	ready  chan struct{}
	tasks  *tasks

	gate           *gate
	penalties      *penalties
	near           *near
	streamsRefused atomic.Uint64
	tellMu         sync.Mutex
	tellAt         map[peer.ID]time.Time // when the log last named a peer; guarded by tellMu
	inner          host.Host             // used by libp2p itself, and for the hello only
	host           *guardedHost          // used for everything else
	bytes          *metrics.BandwidthCounter
	dht            *dht.IpfsDHT
	gossip         *gossip            // nil on a client
	blocks         *exchange.Exchange // nil without Blocks
	redial         *redialer
	relay          *relay.Relay  // nil on a client
	relayed        *relayMeter   // likewise
	joined         chan struct{} // capacity 1: a peer was admitted
}

// bucketSize is Kademlia's k: how many peers a node knows at each distance, keeps a
// record at, and asks at the end of a search (docs/decisions/0025).
const bucketSize = 8

const (
	stateIdle = iota
	stateOpen
	stateClosed
)

// PeerInfo describes one admitted, connected peer.
type PeerInfo struct {
	ID        peer.ID
	Addrs     []string      // remote multiaddrs of its live connections
	Latency   time.Duration // smoothed round trip; 0 if not known
	Direct    bool          // at least one connection that is not relayed
	Transport string        // "tcp", "quic-v1" or "relay", of the preferred connection
	Inbound   bool          // the preferred connection was dialled by the peer
	Client    bool          // a ClientOnly node
	Since     time.Time     // when it was admitted
}

// New validates the configuration and binds the listeners, so Addrs is right
// as soon as New returns. A port that is taken is a *ListenError naming it.
// Nothing is dialled or accepted before Run; a Node that will not be used is
// released by calling Run with a cancelled context.
func New(cfg Config) (*Node, error) {
	parsed, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{
		cfg: cfg, tune: cfg.tune.withDefaults(), log: cfg.Logger,
		ready: make(chan struct{}), joined: make(chan struct{}, 1), tasks: newTasks(), gate: newGate(), penalties: newPenalties(time.Now), near: newNear(), tellAt: make(map[peer.ID]time.Time), bytes: metrics.NewBandwidthCounter(),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.inner, err = newHost(&cfg, parsed, hostOptions{
		gate:    n.gate,
		gater:   &connGater{open: n.isOpen, refused: n.penalties.left, allowed: cfg.allowed, avoid: cfg.Avoid, inner: cfg.Inner},
		bytes:   n.bytes,
		relays:  n.relayCandidates,
		refused: n.streamRefused,
	})
	if err != nil {
		n.cancel()
		return nil, err
	}
	if err := n.assemble(parsed); err != nil {
		return nil, errors.Join(err, n.shut())
	}
	return n, nil
}

// assemble puts the services on the host, and binds the listeners last.
func (n *Node) assemble(p parsed) (err error) {
	n.host = &guardedHost{Host: n.inner, gate: n.gate, find: n.findPeer}
	n.inner.SetStreamHandler(helloID(n.cfg.Network), func(s network.Stream) {
		if !n.tasks.enter() {
			s.Reset()
			return
		}
		defer n.tasks.leave()
		n.serveHello(s)
	})
	n.inner.Network().Notify(notifiee{n})

	mode := []dht.Option{dht.Mode(dht.ModeServer)}
	if n.cfg.ClientOnly {
		mode = []dht.Option{dht.Mode(dht.ModeClient), dht.DisableAutoRefresh()}
	}
	n.dht, err = dht.New(&guardedHost{Host: n.inner, gate: n.gate, nodesOnly: true}, append(mode,
		dht.ProtocolPrefix(protocol.ID("/formd/"+n.cfg.Network)),
		dht.BootstrapPeers(p.bootstrap...),
		dht.BucketSize(bucketSize),
		dht.DisableValues(), // no record but who provides what
	)...)
	if err != nil {
		return fmt.Errorf("p2p: start DHT: %w", err)
	}
	if !n.cfg.ClientOnly {
		if err := n.startRelay(); err != nil {
			return err
		}
		if n.gossip, err = newGossip(n.ctx, n.newGossipHost(), n.cfg.Network, time.Now, n.near, n.cfg.Trace, n.Offence); err != nil {
			return err
		}
	}
	if n.cfg.Blocks != nil {
		n.blocks, err = exchange.New(exchange.Config{
			Host: n.host, Router: n.dht, Network: n.cfg.Network,
			Blocks: n.cfg.Blocks, Source: n.cfg.Source, Logger: n.log,
			Broke: func(p peer.ID, err error) { n.Broke(p, Blocks, err) }, Full: n.streamRefused,
		})
		if err != nil {
			return fmt.Errorf("p2p: %w", err)
		}
	}
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	n.redial = &redialer{n: n, book: newBook(n.ID(), n.tune, rng, p.bootstrap), poke: make(chan struct{}, 1)}
	if n.cfg.Dir != "" && !n.cfg.ClientOnly {
		peers, err := loadPeers(n.cfg.Dir, n.cfg.Network)
		if err == nil {
			err = n.redial.book.recall(peers)
		}
		if err != nil { // a convenience lost, not a reason to stay away
			n.log.Warn("remembered peers are not usable", "err", err)
		}
	}
	if n.cfg.ClientOnly {
		n.cfg.Dir = ""
	}
	return listen(n.inner, p.listen)
}

// Run owns everything the node does until ctx ends, and then closes it and
// waits for its handlers. It returns nil when ctx ended, and may be called once.
func (n *Node) Run(ctx context.Context) error {
	if !n.state.CompareAndSwap(stateIdle, stateOpen) {
		return errors.New("p2p: Run called twice")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.redial.run(ctx) })
	g.Go(func() error { return n.watchIdentify(ctx) })
	if !n.cfg.ClientOnly {
		g.Go(func() error { return n.watchNAT(ctx) })
		g.Go(func() error { return n.survey(ctx) })
	}
	if n.blocks != nil {
		g.Go(func() error { return n.blocks.Run(ctx) })
	}
	if n.cfg.MDNS && !n.cfg.ClientOnly && ctx.Err() == nil {
		g.Go(func() error { n.runMDNS(ctx); return nil })
	}
	close(n.ready)
	err := g.Wait()
	return errors.Join(err, n.shut())
}

// shut closes everything; handlers see their streams fail and their ctx end.
func (n *Node) shut() error {
	n.state.Store(stateClosed)
	n.cancel()
	n.tasks.close()
	var errs []error
	if n.dht != nil {
		errs = append(errs, n.dht.Close())
	}
	if n.relay != nil {
		errs = append(errs, n.relay.Close())
	}
	errs = append(errs, n.inner.Close())
	n.tasks.wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("p2p: close: %w", err)
	}
	return nil
}

func (n *Node) isOpen() bool { return n.state.Load() == stateOpen }

// Ready is closed once the node accepts and dials.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// ID is the node's peer ID.
func (n *Node) ID() peer.ID { return n.inner.ID() }

// Addrs returns the multiaddrs at which the node can be reached, as far as it
// knows, each ending in /p2p/<ID>: at most MaxAddrs, the most widely reachable
// first, in an order that does not depend on when they were learnt. The listening
// ones are there from New on.
func (n *Node) Addrs() []string {
	addrs := n.inner.Addrs()
	if len(n.cfg.Announce) == 0 {
		bound, err := n.inner.Network().InterfaceListenAddresses()
		if err != nil {
			n.log.Debug("interface addresses", "err", err)
		}
		addrs = append(outside(n.cfg.Inner, bound), addrs...)
	}
	addrs = widestFirst(addrs)
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String() + "/p2p/" + n.ID().String()
	}
	return out
}

// Connect dials a multiaddr that ends in /p2p/<peer ID> and waits until both
// sides admitted each other. A refusal is a *RefusedError.
func (n *Node) Connect(ctx context.Context, addr string) (peer.ID, error) {
	pi, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return "", fmt.Errorf("connect to %q: %w", addr, err)
	}
	if !n.isOpen() {
		return pi.ID, fmt.Errorf("connect to %s: %w", pi.ID, ErrNotRunning)
	}
	clearDialBackoff(n.inner, pi.ID)
	if err := n.host.Connect(ctx, *pi); err != nil {
		return pi.ID, fmt.Errorf("connect to %s: %w", pi.ID, err)
	}
	return pi.ID, nil
}

// Drop closes all connections to a peer, for example after its membership was
// revoked. Whether it may come back is Admission's to say.
func (n *Node) Drop(p peer.ID, reason string) error {
	n.log.Info("peer dropped", "peer", p, "reason", reason)
	if err := n.inner.Network().ClosePeer(p); err != nil {
		return fmt.Errorf("drop %s: %w", p, err)
	}
	return nil
}

// Peers returns the admitted, connected peers that are not clients, sorted.
func (n *Node) Peers() []peer.ID {
	var out []peer.ID
	for _, a := range n.gate.admitted() {
		if !a.client {
			out = append(out, a.id)
		}
	}
	slices.Sort(out)
	return out
}

// PeerInfo returns all admitted, connected peers, sorted by ID.
func (n *Node) PeerInfo() []PeerInfo {
	var out []PeerInfo
	for _, a := range n.gate.admitted() {
		info := PeerInfo{
			ID: a.id, Latency: n.inner.Peerstore().LatencyEWMA(a.id), Client: a.client, Since: a.since,
			Transport: a.best.ConnState().Transport, Inbound: a.best.Stat().Direction == network.DirInbound,
		}
		for _, c := range a.conns {
			info.Addrs = append(info.Addrs, c.RemoteMultiaddr().String())
			info.Direct = info.Direct || !isRelayed(c)
		}
		if isRelayed(a.best) {
			info.Transport = "relay"
		}
		slices.Sort(info.Addrs)
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b PeerInfo) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Publish sends msg, at most MaxGossip bytes, to a topic. Bytes equal to some
// published in the last two minutes are not sent again.
func (n *Node) Publish(ctx context.Context, topic string, msg []byte) error {
	if n.gossip == nil {
		return ErrClientOnly
	}
	return n.gossip.publish(ctx, topic, msg)
}

// Subscribe joins a topic and returns. Until ctx ends every message of another
// node is shown to validate, several at once and at most once in two minutes
// for the same bytes; false drops it, and true passes it on. validate is how
// messages are received: it must be quick and must not keep or change msg. One
// subscription a topic at a time, else ErrSubscribed.
func (n *Node) Subscribe(ctx context.Context, topic string, validate func(ctx context.Context, from peer.ID, msg []byte) bool) error {
	if n.gossip == nil {
		return ErrClientOnly
	}
	cancel, err := n.gossip.subscribe(topic, validate)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, cancel)
	return nil
}

// findPeer asks the DHT for the addresses of a peer.
func (n *Node) findPeer(ctx context.Context, p peer.ID) (peer.AddrInfo, error) {
	return n.dht.FindPeer(ctx, p)
}

// runMDNS announces and looks for nodes of this network on the LAN.
func (n *Node) runMDNS(ctx context.Context) {
	// A DNS label holds 63 bytes. That two networks share a prefix of 32 letters
	// costs them a refused connection, no more.
	name := n.cfg.Network[:min(len(n.cfg.Network), 32)]
	s := mdns.NewMdnsService(n.inner, "_formd-"+name+"._udp", found{n})
	if err := s.Start(); err != nil {
		n.log.Debug("no discovery on the LAN", "err", err)
		return
	}
	<-ctx.Done()
	if err := s.Close(); err != nil {
		n.log.Debug("end discovery on the LAN", "err", err)
	}
}

// found takes what anyone on the LAN claims: a hint where to dial, no more.
type found struct{ n *Node }

func (f found) HandlePeerFound(pi peer.AddrInfo) {
	pi.Addrs = worthKeeping(pi.Addrs)
	f.n.redial.with(func(b *book, _ time.Time) { b.offer(pi) })
}
