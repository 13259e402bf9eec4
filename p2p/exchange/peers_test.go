package exchange

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multihash"
)

const testNetwork = "testnet"

// newHost is a TCP host on loopback with the default limits of this machine's
// memory, raised as this package asks.
func newHost(t testing.TB) host.Host {
	t.Helper()
	var limits rcmgr.PartialLimitConfig
	Limits(&limits, testNetwork)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())))
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.ResourceManager(rm), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close host: %v", err)
		}
	})
	return h
}

type testPeer struct {
	*Exchange
	host   host.Host
	blocks blockstore.Blockstore
	source *memSource
}

// newPeer serves. Peers that break the protocol are told to broke, if there is one.
func newPeer(t testing.TB, broke ...func(peer.ID, error)) *testPeer {
	t.Helper()
	p := &testPeer{
		host: newHost(t), source: &memSource{entries: map[cid.Cid][][]byte{}},
		blocks: blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore())),
	}
	cfg := Config{Host: p.host, Network: testNetwork, Blocks: p.blocks, Source: p.source, Stall: 2 * time.Second}
	if len(broke) > 0 {
		cfg.Broke = broke[0]
	}
	var err error
	p.Exchange, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, p.Exchange)
	return p
}

// run runs an exchange until the test ends, and waits until it serves.
func run(t testing.TB, e *Exchange) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !e.Running(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("exchange does not start")
		}
	}
}

func connectTo(t testing.TB, a, b *testPeer) {
	t.Helper()
	if err := a.host.Connect(t.Context(), peer.AddrInfo{ID: b.host.ID(), Addrs: b.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// memSource serves entries from memory.
type memSource struct {
	mu      sync.Mutex
	entries map[cid.Cid][][]byte // nil leaf: not here
}

func (m *memSource) put(leaves [][]byte) cid.Cid {
	h := sha256.New()
	for _, l := range leaves {
		h.Write(l)
	}
	c := testCID(h.Sum(nil))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[c] = leaves
	return c
}

func (m *memSource) get(c cid.Cid) [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entries[c]
}

func (m *memSource) Describe(_ context.Context, root cid.Cid, send func([]byte) error) ([]cid.Cid, error) {
	if m.get(root) == nil {
		return nil, nil
	}
	for _, part := range []string{"root", "signature", "node"} {
		if err := send([]byte(part)); err != nil {
			return nil, err
		}
	}
	return []cid.Cid{root}, nil
}

func (m *memSource) Have(_ context.Context, entry cid.Cid) ([]byte, error) {
	leaves := m.get(entry)
	if leaves == nil {
		return nil, nil
	}
	out := make([]byte, (len(leaves)+7)/8)
	for i, l := range leaves {
		if l != nil {
			out[i/8] |= 1 << (i % 8)
		}
	}
	return out, nil
}

func (m *memSource) Leaves(_ context.Context, entry cid.Cid, first, count int, send func([]byte) error) error {
	leaves := m.get(entry)
	for i := first; i < first+count; i++ {
		var l []byte
		if i < len(leaves) {
			l = leaves[i]
		}
		if err := send(l); err != nil {
			return err
		}
	}
	return nil
}

func testCID(data []byte) cid.Cid {
	h, err := multihash.Sum(data, multihash.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.Raw, h)
}

// noiseLeaves is n leaves of size bytes that depend on seed only.
func noiseLeaves(seed byte, n, size int) [][]byte {
	r := rand.NewChaCha8([32]byte{seed})
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, size)
		_, _ = r.Read(out[i]) // never fails
	}
	return out
}

func rawBlocks(t testing.TB, leaves [][]byte) ([]blocks.Block, []cid.Cid) {
	t.Helper()
	bs, cs := make([]blocks.Block, len(leaves)), make([]cid.Cid, len(leaves))
	for i, l := range leaves {
		b, err := blocks.NewBlockWithCid(l, testCID(l))
		if err != nil {
			t.Fatal(err)
		}
		bs[i], cs[i] = b, b.Cid()
	}
	return bs, cs
}
