package exchange

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	"golang.org/x/sync/errgroup"
)

// Errors to be tested with errors.Is.
var (
	ErrNotRunning = errors.New("exchange is not running")
	ErrStalled    = errors.New("peer sent nothing in the stall time")
	ErrProtocol   = errors.New("peer broke the bulk protocol")
)

const (
	defaultStall   = 10 * time.Second // the findings' watchdog
	dialTimeout    = 2 * time.Second  // dead providers cost Spegel's users 30 s each
	findTimeout    = 10 * time.Second // a DHT walk on a small network takes far less
	maxProviders   = 20               // kad-dht keeps as many replicas
	maxSessionFrom = 16
)

// Router finds and announces holders; every routing.ContentRouting is one.
type Router interface {
	FindProvidersAsync(ctx context.Context, c cid.Cid, count int) <-chan peer.AddrInfo
	Provide(ctx context.Context, c cid.Cid, announce bool) error
}

// Config of an Exchange.
type Config struct {
	Host    host.Host             // required; its resource manager must have Limits applied
	Router  Router                // nil: nobody is found or told
	Network string                // short network ID, part of every protocol ID; required
	Blocks  blockstore.Blockstore // served over bitswap; required, may be empty
	Source  Source                // served over bulk streams; nil: none
	Stall   time.Duration         // default 10 s
	// Broke is told of a peer that broke the protocol, Full of one that wanted
	// more streams than there are. nil: nobody is told.
	Broke, Full func(p peer.ID, err error)
	Logger      *slog.Logger // nil: discard
}

// Stats counts what this node sent and received since it started.
type Stats struct {
	BulkSent, BulkLeaves     uint64 // leaf bytes and leaves sent over bulk streams
	BitswapSent, BitswapRecv uint64 // block bytes over bitswap
}

// Exchange is one node's block exchange. Between New and Run, and after Run,
// its methods fail with ErrNotRunning.
type Exchange struct {
	cfg     Config
	log     *slog.Logger
	running atomic.Pointer[bitswap.Bitswap]
	recent  recent
	streams limiter
	sent    atomic.Uint64
	leaves  atomic.Uint64
}

// New checks the configuration. Nothing is served before Run.
func New(cfg Config) (*Exchange, error) {
	if cfg.Host == nil || cfg.Blocks == nil || cfg.Network == "" {
		return nil, errors.New("exchange: Host, Blocks and Network are required")
	}
	if cfg.Stall <= 0 {
		cfg.Stall = defaultStall
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, f := range []*func(peer.ID, error){&cfg.Broke, &cfg.Full} {
		if *f == nil {
			*f = func(peer.ID, error) {}
		}
	}
	return &Exchange{cfg: cfg, log: cfg.Logger, streams: newLimiter()}, nil
}

// Run serves blocks until ctx ends, and returns nil then.
func (e *Exchange) Run(ctx context.Context) error {
	bsn := bsnet.NewFromIpfsHost(e.cfg.Host, bsnet.Prefix(Prefix(e.cfg.Network)))
	var find routing.ContentDiscovery
	if e.cfg.Router != nil {
		find = e.cfg.Router
	}
	bs := bitswap.New(ctx, bsn, find, e.cfg.Blocks, append(bitswapOptions(), bitswap.WithTracer(watcher{e.cfg.Broke}))...)
	defer bsn.Stop()
	defer func() {
		for _, p := range bitswapProtocols(e.cfg.Network) {
			e.cfg.Host.RemoveStreamHandler(p)
		}
	}()
	if !e.running.CompareAndSwap(nil, bs) {
		return errors.Join(errors.New("exchange: Run called twice"), bs.Close())
	}
	if e.cfg.Source != nil {
		e.cfg.Host.SetStreamHandler(BulkProtocol(e.cfg.Network), func(s network.Stream) {
			e.serve(ctx, s)
		})
	}
	<-ctx.Done()
	e.cfg.Host.RemoveStreamHandler(BulkProtocol(e.cfg.Network))
	e.running.Store(nil)
	e.streams.close()
	if err := bs.Close(); err != nil {
		return fmt.Errorf("exchange: close bitswap: %w", err)
	}
	return nil
}

// Running says whether Run is serving; tests and assemblers wait for it.
func (e *Exchange) Running() bool { return e.running.Load() != nil }

// ID is this node's peer ID.
func (e *Exchange) ID() peer.ID { return e.cfg.Host.ID() }

// Providers lists peers that the router says hold c, and adds their addresses
// to the host's.
func (e *Exchange) Providers(ctx context.Context, c cid.Cid) ([]peer.ID, error) {
	if e.cfg.Router == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	var out []peer.ID
	for info := range e.cfg.Router.FindProvidersAsync(ctx, c, maxProviders) {
		if info.ID == e.cfg.Host.ID() {
			continue
		}
		e.learn(info)
		out = append(out, info.ID)
	}
	return out, nil
}

// Provide announces that this node holds c.
func (e *Exchange) Provide(ctx context.Context, c cid.Cid) error {
	if e.cfg.Router == nil {
		return nil
	}
	if err := e.cfg.Router.Provide(ctx, c, true); err != nil {
		return fmt.Errorf("provide %s: %w", c, err)
	}
	return nil
}

// Session is a bitswap session; the peers in from are connected to first, so
// that its first broadcast reaches them. It ends with ctx.
func (e *Exchange) Session(ctx context.Context, from []peer.ID) (exchange.Fetcher, error) {
	bs := e.running.Load()
	if bs == nil {
		return nil, ErrNotRunning
	}
	var dials errgroup.Group
	for _, p := range from[:min(len(from), maxSessionFrom)] {
		dials.Go(func() error {
			if err := e.connect(ctx, p); err != nil {
				e.log.Debug("bitswap peer is away", "peer", p, "err", err)
			}
			return nil // a session needs only one of them
		})
	}
	if err := dials.Wait(); err != nil {
		return nil, err
	}
	return bs.NewSession(ctx), nil
}

// Stats returns the counters.
func (e *Exchange) Stats() (Stats, error) {
	st := Stats{BulkSent: e.sent.Load(), BulkLeaves: e.leaves.Load()}
	bs := e.running.Load()
	if bs == nil {
		return st, nil
	}
	b, err := bs.Stat()
	if err != nil {
		return st, fmt.Errorf("bitswap stat: %w", err)
	}
	st.BitswapSent, st.BitswapRecv = b.DataSent, b.DataReceived
	return st, nil
}

func (e *Exchange) connect(ctx context.Context, p peer.ID) error {
	if e.cfg.Host.Network().Connectedness(p) == network.Connected {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return e.cfg.Host.Connect(ctx, peer.AddrInfo{ID: p})
}

// learn remembers addresses for long enough to dial them.
func (e *Exchange) learn(info peer.AddrInfo) {
	if len(info.Addrs) > maxAddrs {
		info.Addrs = info.Addrs[:maxAddrs]
	}
	e.cfg.Host.Peerstore().AddAddrs(info.ID, info.Addrs, addrTTL)
}

// Prefix is put before bitswap's protocol IDs.
func Prefix(network string) protocol.ID { return protocol.ID("/formd/" + network) }

// BulkProtocol is the ID of the bulk stream.
func BulkProtocol(network string) protocol.ID { return protocol.ID("/formd/bulk/1/" + network) }
