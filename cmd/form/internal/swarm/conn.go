// Package swarm is form's way to a swarm: a local formd's unix socket, or
// libp2p straight to peers, and from there to the node that runs a replica.
//
// Guarantees: the libp2p identity is made for one run of form and thrown away;
// every connection presents a session that the owner's key signed for exactly
// this pair of peers; the key is asked for only when a connection needs it.
//
// Not guaranteed: that a peer tells the truth about the swarm. What it reports
// is the state it holds; only statements are proof, and form signs those itself.
package swarm

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/p2p/exchange"
)

const (
	// sessionLife is how long a connection may be opened with one session.
	sessionLife = time.Hour
	// dialTimeout bounds one attempt to reach one peer.
	dialTimeout = 12 * time.Second
	// localTimeout bounds the first answer of a local daemon.
	localTimeout = 5 * time.Second
)

// Config says which swarm, by which way, and as whom.
type Config struct {
	API    string       // unix socket of a formd; empty: go by Peers
	Peers  []string     // multiaddrs ending in /p2p/…, tried in order
	Ticket *stmt.Ticket // may be nil
	// Key opens the owner's key. It is called at most once.
	Key func() (ed25519.PrivateKey, error)
	// Owner is for whom a device's key speaks; zero: the key is the owner's.
	Owner stmt.Key
	// Blocks and Source are what the peers of this Conn may fetch. Without them
	// it cannot fetch either.
	Blocks blockstore.Blockstore
	Source exchange.Source
	Logger *slog.Logger
}

// Conn is a way into a swarm. It is safe for concurrent use.
type Conn struct {
	cfg   Config
	key   func() (ed25519.PrivateKey, error)
	local *api.Client // nil without a local daemon

	start sync.Mutex // held while node is started
	mu    sync.Mutex
	node  *p2p.Node // nil until libp2p is needed
	stop  func() error
	net   stmt.NetworkID
	entry peer.ID // the peer that stands for the swarm
	apis  map[peer.ID]*api.Client
	addrs map[stmt.Key][]string // of nodes, as the swarm reports them
}

// Dial finds an entry into the swarm. The error is an *UnreachableError when
// none answers.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	c := &Conn{cfg: cfg, key: sync.OnceValues(cfg.Key), apis: map[peer.ID]*api.Client{}}
	if c.cfg.Logger == nil {
		c.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.API == "" {
		if err := c.dialPeers(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
	c.local = api.NewClient(api.Unix(cfg.API))
	hctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	if _, err := c.local.Health(hctx); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &UnreachableError{Socket: cfg.API, Err: err}
	}
	return c, nil
}

// Local says whether a daemon on this machine answers.
func (c *Conn) Local() bool { return c.local != nil }

// API asks the local daemon, or the entry peer.
func (c *Conn) API() *api.Client {
	if c.local != nil {
		return c.local
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client(c.entry)
}

// Owner asks the entry by libp2p, as the owner: what only an owner may see.
func (c *Conn) Owner(ctx context.Context) (*api.Client, error) {
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client(c.entry), nil
}

// Settled is Network with the settings that are part of it. A node that names others
// is refused with [ErrNetwork].
func (c *Conn) Settled(ctx context.Context) (stmt.NetworkID, stmt.Settings, error) {
	id, err := c.Network(ctx)
	if err != nil {
		return id, stmt.Settings{}, err
	}
	self, err := c.API().Node(ctx)
	if err != nil {
		return id, stmt.Settings{}, err
	}
	settings := self.Network.Settings()
	if err = settings.Check(); err == nil && self.Network.NetworkID() != id {
		err = fmt.Errorf("%w: the peer names another name, root, prefix or zone than that of network %s", ErrNetwork, id.Short())
	}
	return id, settings, err
}

// Network is the ID of the swarm's network.
func (c *Conn) Network(ctx context.Context) (stmt.NetworkID, error) {
	c.mu.Lock()
	id := c.net
	c.mu.Unlock()
	if id != (stmt.NetworkID{}) {
		return id, nil
	}
	self, err := c.API().Node(ctx)
	if err != nil {
		return id, err
	}
	if id, err = parseNetwork(self.Network.ID); err != nil {
		return id, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.net = id
	return id, nil
}

// Peer is the running libp2p node and the entry peer, connected.
func (c *Conn) Peer(ctx context.Context) (*p2p.Node, peer.ID, error) {
	if err := c.connect(ctx); err != nil {
		return nil, "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node, c.entry, nil
}

// Close ends all connections.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.local != nil {
		c.local.Close()
	}
	for _, a := range c.apis {
		a.Close()
	}
	if c.stop == nil {
		return nil
	}
	stop := c.stop
	c.stop = nil
	return stop()
}

// connect makes sure that the libp2p connection to the entry stands.
func (c *Conn) connect(ctx context.Context) error {
	c.start.Lock()
	defer c.start.Unlock()
	c.mu.Lock()
	up := c.node != nil
	c.mu.Unlock()
	if up {
		return nil
	}
	id, err := c.Network(ctx)
	if err != nil {
		return err
	}
	self, err := c.local.Node(ctx)
	if err != nil {
		return err
	}
	if err := c.startNode(ctx, id); err != nil {
		return err
	}
	p, err := c.dialAny(ctx, self.Node.Addrs)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entry = p
	return nil
}

// dialPeers connects to the first of the configured peers that answers.
func (c *Conn) dialPeers(ctx context.Context) error {
	tried := &UnreachableError{}
	for _, addr := range c.cfg.Peers {
		err := c.dialPeer(ctx, addr)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case final(err):
			return err
		}
		tried.Peers = append(tried.Peers, addr)
		tried.Err = errors.Join(tried.Err, err)
	}
	return tried
}

// final errors would be the same with every other peer.
func final(err error) bool {
	var key *KeyError
	return errors.Is(err, p2p.ErrRefused) || errors.As(err, &key) || errors.Is(err, ErrNetwork)
}

func (c *Conn) dialPeer(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	name, _, err := p2p.Discover(ctx, addr)
	if err != nil {
		return err
	}
	var id stmt.NetworkID
	switch t := c.cfg.Ticket; {
	case t != nil && name == protocolName(t.Network()):
		id = t.Network()
	case t != nil:
		return fmt.Errorf("%w: %s is in network %s, the ticket is for %s (%q)", ErrNetwork, addr, name, t.Network().Short(), t.Name)
	default:
		if id, err = parseNetwork(name); err != nil {
			return err
		}
	}
	if err := c.startNode(ctx, id); err != nil {
		return err
	}
	p, err := c.node.Connect(ctx, addr)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entry = p
	return nil
}

// ErrNetwork: the peer takes part in another network than the one asked for, or in
// one of which too little is known.
var ErrNetwork = errors.New("another network")

func parseNetwork(s string) (stmt.NetworkID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(stmt.NetworkID{}) {
		return stmt.NetworkID{}, fmt.Errorf("%w: the peer says only %q of it; its ticket says the rest", ErrNetwork, s)
	}
	return stmt.NetworkID(b), nil
}

// startNode starts the libp2p node of this run.
func (c *Conn) startNode(ctx context.Context, id stmt.NetworkID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node != nil {
		if c.net != id {
			return fmt.Errorf("%w: the peers given are in different networks", ErrNetwork)
		}
		return nil
	}
	key, err := c.key()
	if err != nil {
		return &KeyError{err}
	}
	_, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make a connection identity: %w", err)
	}
	node, err := p2p.New(p2p.Config{
		Key: identity, Network: protocolName(id), ClientOnly: true,
		Blocks: c.cfg.Blocks, Source: c.cfg.Source, Logger: c.cfg.Logger,
		Admission: &admission{key: key, owner: c.cfg.Owner, client: stmt.KeyOf(identity), net: id, ticket: c.cfg.Ticket},
	})
	if err != nil {
		return fmt.Errorf("start libp2p: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- node.Run(run) }()
	select {
	case <-node.Ready():
	case err := <-ended:
		cancel()
		return fmt.Errorf("start libp2p: %w", err)
	case <-ctx.Done():
		cancel()
		return errors.Join(ctx.Err(), <-ended)
	}
	c.node, c.net = node, id
	c.stop = func() error { cancel(); return <-ended }
	return nil
}

// protocolName is how the network is named in protocol IDs: in full, so that
// whoever knows only an address learns what a session must be signed for.
func protocolName(id stmt.NetworkID) string { return id.String() }

// client is the API client of one peer. c.mu is held.
func (c *Conn) client(p peer.ID) *api.Client {
	if a := c.apis[p]; a != nil {
		return a
	}
	a := api.NewClient(func(ctx context.Context) (net.Conn, error) { return c.node.Open(ctx, p, api.Proto) })
	c.apis[p] = a
	return a
}

// dialAny connects to a peer by whichever of its addresses answers first.
func (c *Conn) dialAny(ctx context.Context, addrs []string) (peer.ID, error) {
	if len(addrs) == 0 {
		return "", &UnreachableError{Err: errors.New("it has published no address")}
	}
	addrs = addrs[:min(len(addrs), 16)]
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type result struct {
		p   peer.ID
		err error
	}
	results := make(chan result, len(addrs))
	for _, a := range addrs {
		go func() {
			p, err := c.node.Connect(ctx, a)
			results <- result{p, err}
		}()
	}
	var errs []error
	for range addrs {
		r := <-results
		if r.err == nil {
			return r.p, nil
		}
		errs = append(errs, r.err)
	}
	if i := slices.IndexFunc(errs, func(err error) bool { return errors.Is(err, p2p.ErrRefused) }); i >= 0 {
		return "", errs[i]
	}
	return "", &UnreachableError{Peers: addrs, Err: errors.Join(errs...)}
}
