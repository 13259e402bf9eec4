package reconcile

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/store"
)

// hub is a network in memory: streams are pipes, gossip is a call. A node that
// is cut off reaches nobody.
type hub struct {
	mu    sync.Mutex
	nodes map[peer.ID]*endpoint
}

// endpoint is one node's transport: crdt.Gossip, crdt.Streams and Streams.
type endpoint struct {
	hub *hub
	id  peer.ID

	cut      bool // guarded by hub.mu
	mute     bool // guarded by hub.mu: its connections stand, and carry nothing
	handlers map[string]func(context.Context, peer.ID, net.Conn)
	topics   map[string]func(context.Context, peer.ID, []byte) bool
	open     map[net.Conn]bool
}

func newHub() *hub { return &hub{nodes: map[peer.ID]*endpoint{}} }

// join adds a node, or replaces one that died.
func (h *hub) join(k stmt.Key) *endpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := &endpoint{
		hub: h, id: PeerOf(k), handlers: map[string]func(context.Context, peer.ID, net.Conn){},
		topics: map[string]func(context.Context, peer.ID, []byte) bool{}, open: map[net.Conn]bool{},
	}
	h.nodes[e.id] = e
	return e
}

// setCut takes the node off the network, its open streams included, or back.
func (e *endpoint) setCut(cut bool) {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	e.cut = cut
	for c := range e.open {
		c.Close()
	}
	clear(e.open)
}

// setMute has the node's connections carry nothing, or go on.
func (e *endpoint) setMute(mute bool) {
	e.setCut(false) // its streams end
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	e.mute = mute
}

func (e *endpoint) Peers() []peer.ID {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	var out []peer.ID
	for id, o := range e.hub.nodes {
		if o != e && !o.cut && !e.cut {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

var errUnreachable = errors.New("unreachable")

func (e *endpoint) Open(_ context.Context, p peer.ID, proto string) (net.Conn, error) {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	o := e.hub.nodes[p]
	if o == nil || o.cut || e.cut || o.mute || e.mute || o.handlers[proto] == nil {
		return nil, errUnreachable
	}
	a, b := net.Pipe()
	e.open[a], o.open[b] = true, true
	go o.handlers[proto](context.Background(), e.id, b)
	return a, nil
}

func (e *endpoint) Handle(proto string, h func(ctx context.Context, from peer.ID, c net.Conn)) {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	e.handlers[proto] = h
}

func (e *endpoint) Publish(ctx context.Context, topic string, msg []byte) error {
	e.hub.mu.Lock()
	var to []func(context.Context, peer.ID, []byte) bool
	for _, o := range e.hub.nodes {
		if o != e && !o.cut && !e.cut && !o.mute && !e.mute && o.topics[topic] != nil {
			to = append(to, o.topics[topic])
		}
	}
	e.hub.mu.Unlock()
	for _, f := range to {
		f(ctx, e.id, slices.Clone(msg))
	}
	return nil
}

func (e *endpoint) Subscribe(_ context.Context, topic string, f func(context.Context, peer.ID, []byte) bool) error {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	e.topics[topic] = f
	return nil
}

// gate is a State whose writes can be made to fail, and are counted.
type gate struct {
	State
	mu     sync.Mutex
	err    error
	writes int // of claims
}

func (g *gate) setFail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

func (g *gate) fails() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *gate) SetNode(ctx context.Context, n crdt.Node) error {
	if err := g.fails(); err != nil {
		return err
	}
	return g.State.SetNode(ctx, n)
}

func (g *gate) SetClaims(ctx context.Context, claims []crdt.Claim) error {
	if err := g.fails(); err != nil {
		return err
	}
	g.mu.Lock()
	g.writes++
	g.mu.Unlock()
	return g.State.SetClaims(ctx, claims)
}

// counters count what a reconciler does with its machine's other parts.
type counters struct {
	VMs
	Liveness
	steps, syncs atomic.Int64
}

func (c *counters) SetInterest(nodes []stmt.Key) {
	c.steps.Add(1)
	c.Liveness.SetInterest(nodes)
}

func (c *counters) Sync(ctx context.Context, desired []fogvm.VM) error {
	c.syncs.Add(1)
	return c.VMs.Sync(ctx, desired)
}

// partCounters are counters as one of the two parts, which have a method of the
// same name.
type (
	countedVMs      struct{ *counters }
	countedLiveness struct{ *counters }
)

func (c countedVMs) Changed() <-chan struct{}      { return c.VMs.Changed() }
func (c countedLiveness) Changed() <-chan struct{} { return c.Liveness.Changed() }

// library is the packs there are; shelf is one node's part of it.
type library struct {
	mu    sync.Mutex
	roots map[string]*store.Root
	fail  map[string]error // fetches of these packs fail
}

type shelf struct {
	lib *library

	mu      sync.Mutex
	here    map[string]bool
	fetches int
	pinned  map[string]bool
	kept    [][]cid.Cid // what each GC was told to keep
}

// cidOf is a CID that stands for a name.
func cidOf(name string) cid.Cid {
	sum, err := mh.Sum([]byte(name), mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.DagCBOR, sum)
}

func entry(kind string) store.Entry {
	return store.Entry{Kind: kind, Root: cidOf(kind), Size: 1, Format: "squashfs"}
}

func newLibrary() *library {
	return &library{roots: map[string]*store.Root{}, fail: map[string]error{}}
}

// add puts a pack into the library and returns its CID.
func (l *library) add(name string, run store.RunConfig) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := cidOf(name).String()
	l.roots[c] = &store.Root{Name: name, Base: cidOf("base"), Layers: []store.Entry{entry("top"), entry("bottom")}, Run: run}
	return c
}

func (l *library) setFail(c string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail[c] = err
}

func newShelf(l *library) *shelf {
	return &shelf{lib: l, here: map[string]bool{}, pinned: map[string]bool{}}
}

func (s *shelf) Pack(_ context.Context, c cid.Cid) (*store.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.here[c.String()] {
		return nil, store.ErrNotFound
	}
	s.lib.mu.Lock()
	defer s.lib.mu.Unlock()
	return s.lib.roots[c.String()], nil
}

func (s *shelf) Base(context.Context, cid.Cid) (*store.Base, error) {
	return &store.Base{Kernel: entry("kernel"), Initrd: entry("initrd"), Modules: entry("modules"), Rootfs: entry("rootfs")}, nil
}

func (s *shelf) Path(e store.Entry) (string, error) { return "/store/" + e.Kind, nil }

func (s *shelf) List(context.Context) ([]store.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.Info
	for c := range s.here {
		id, err := cid.Decode(c)
		if err != nil {
			return nil, err
		}
		out = append(out, store.Info{CID: id, Kind: "pack", Complete: true, Pinned: s.pinned[c]})
	}
	return out, nil
}

func (s *shelf) Fetch(_ context.Context, c cid.Cid, o store.FetchOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches++
	s.lib.mu.Lock()
	defer s.lib.mu.Unlock()
	if err := s.lib.fail[c.String()]; err != nil {
		return err
	}
	if s.lib.roots[c.String()] == nil {
		return fmt.Errorf("pack %s: %w", c, store.ErrNoPeer)
	}
	if o.Progress != nil {
		o.Progress(store.Progress{})
		o.Progress(store.Progress{Total: 100, Local: 30})
	}
	s.here[c.String()] = true
	if !o.NoPin {
		s.pinned[c.String()] = true
	}
	return nil
}

// drop loses a pack.
func (s *shelf) drop(c string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.here, c)
}

func (s *shelf) GC(_ context.Context, keep func() []cid.Cid) (int64, error) {
	kept := keep()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = append(s.kept, kept)
	for c := range s.here {
		if !s.pinned[c] && !slices.ContainsFunc(kept, func(k cid.Cid) bool { return k.String() == c }) {
			delete(s.here, c)
		}
	}
	return 0, nil
}

// within polls until check says nil.
func within(t *testing.T, d time.Duration, what string, check func() error) {
	t.Helper()
	// Stalled by what else runs here, a node takes itself for one that slept, and
	// for half a minute may decide nothing.
	d += 40 * time.Second
	deadline := time.Now().Add(d)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, d, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func keyOf(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}
