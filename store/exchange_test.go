package store_test

import (
	"context"
	"crypto/ed25519"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/formthefog/formation/p2p/exchange"
	"github.com/formthefog/formation/store"
)

// The tests of this file run stores over real libp2p hosts on loopback.

const network = "storetest"

type netPeer struct {
	*store.Store
	x    *exchange.Exchange
	host host.Host
}

func newNetPeer(t *testing.T) *netPeer {
	t.Helper()
	var limits rcmgr.PartialLimitConfig
	exchange.Limits(&limits, network)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())))
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.ResourceManager(rm), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	x, err := exchange.New(exchange.Config{Host: h, Network: network, Blocks: s.Blocks(), Source: s.Source()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for what, err := range map[string]error{"run": <-ended, "store": s.Close(), "host": h.Close()} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !x.Running(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("exchange does not start")
		}
	}
	s.SetFetcher(x)
	return &netPeer{s, x, h}
}

func (p *netPeer) connect(t *testing.T, to *netPeer) {
	t.Helper()
	if err := p.host.Connect(t.Context(), peer.AddrInfo{ID: to.host.ID(), Addrs: to.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// pack puts a pack with one layer of so many bytes into the peer's store.
func (p *netPeer) pack(t *testing.T, size int) cid.Cid {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	add := func(seed byte, kind string, size int) store.Entry {
		data := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(data) // never fails
		path := filepath.Join(t.TempDir(), kind)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := p.AddImage(t.Context(), path, kind, "raw")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	base, err := p.PutBase(t.Context(), store.Base{Name: "debian:12", Kernel: add(1, "kernel", 1000), Rootfs: add(2, "rootfs", 100<<10)}, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.PutPack(t.Context(), store.Root{Name: "hello", Base: base, Layers: []store.Entry{add(3, "layer", size)}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFetchOverLibp2p(t *testing.T) {
	origin := newNetPeer(t)
	c := origin.pack(t, 8<<20)
	for _, how := range []struct {
		name    string
		bitswap bool
	}{{"bulk", false}, {"bitswap", true}} {
		t.Run(how.name, func(t *testing.T) {
			node := newNetPeer(t)
			node.connect(t, origin)
			before, err := origin.x.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if err := node.Fetch(t.Context(), c, store.FetchOptions{From: []peer.ID{origin.host.ID()}, Bitswap: how.bitswap}); err != nil {
				t.Fatal(err)
			}
			if err := node.Verify(t.Context(), c); err != nil {
				t.Error(err)
			}
			after, err := origin.x.Stats()
			if err != nil {
				t.Fatal(err)
			}
			bulk, bitswap := after.BulkSent-before.BulkSent, after.BitswapSent-before.BitswapSent
			if how.bitswap && (bulk != 0 || bitswap < 8<<20) || !how.bitswap && (bulk < 8<<20 || bitswap != 0) {
				t.Errorf("origin sent %d bytes in bulk and %d by bitswap", bulk, bitswap)
			}
		})
	}
}

// Five nodes asking for one pack at once: the origin sends at most 2.5 copies.
func TestFiveNodesShareOverLibp2p(t *testing.T) {
	for _, size := range []int{4 << 20, 24 << 20} {
		origin := newNetPeer(t)
		c := origin.pack(t, size)
		var nodes []*netPeer
		for range 5 {
			n := newNetPeer(t)
			n.connect(t, origin)
			nodes = append(nodes, n)
		}
		var all sync.WaitGroup
		for _, n := range nodes {
			all.Go(func() {
				if err := n.Fetch(t.Context(), c, store.FetchOptions{From: []peer.ID{origin.host.ID()}}); err != nil {
					t.Error(err)
					return
				}
				if err := n.Verify(t.Context(), c); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		st, err := origin.x.Stats()
		if err != nil {
			t.Fatal(err)
		}
		copies := float64(st.BulkSent+st.BitswapSent) / float64(size+100<<10+1000)
		t.Logf("%d MiB: the origin sent %.2f copies", size>>20, copies)
		if copies > 2.5 {
			t.Errorf("%d MiB: the origin sent %.2f copies", size>>20, copies)
		}
	}
}
