package store

import (
	"context"
	"crypto/ed25519"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// fakeNet is a network in memory: every member is reached at once, unless a test
// makes it misbehave.
type fakeNet struct {
	mu      sync.Mutex
	members map[peer.ID]*member
	broke   map[peer.ID]int              // who gave other bytes than it was asked for
	asked   map[cid.Cid]map[peer.ID]bool // who asked for an entry: peers told of each other
}

type member struct {
	store *Store
	sent  int // leaves
	// tamper may change or drop (nil) a leaf, or end the stream.
	tamper func(entry cid.Cid, leaf int, data []byte) ([]byte, error)
	// describe may change a block of a description.
	describe func(n int, data []byte) []byte
	noBulk   bool
}

func newFakeNet() *fakeNet {
	return &fakeNet{members: map[peer.ID]*member{}, broke: map[peer.ID]int{}, asked: map[cid.Cid]map[peer.ID]bool{}}
}

func (n *fakeNet) join(id peer.ID, s *Store) *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := &member{store: s}
	n.members[id] = m
	s.SetFetcher(fakeFetcher{n, id})
	return m
}

func (n *fakeNet) get(id peer.ID) *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.members[id]
}

func (n *fakeNet) leavesSent(id peer.ID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.members[id].sent
}

// fakeFetcher is one member's Fetcher.
type fakeFetcher struct {
	net *fakeNet
	id  peer.ID
}

func (f fakeFetcher) ID() peer.ID                                           { return f.id }
func (f fakeFetcher) Providers(context.Context, cid.Cid) ([]peer.ID, error) { return nil, nil }
func (f fakeFetcher) Provide(context.Context, cid.Cid) error                { return nil }
func (f fakeFetcher) Broke(p peer.ID, err error) {
	f.net.mu.Lock()
	defer f.net.mu.Unlock()
	f.net.broke[p]++
}

func (f fakeFetcher) Session(_ context.Context, from []peer.ID) (exchange.Fetcher, error) {
	return fakeSession{f.net, from}, nil
}

func (f fakeFetcher) Bulk(_ context.Context, from peer.ID) (Bulk, error) {
	m := f.net.get(from)
	if m == nil || m.noBulk {
		return nil, errors.New("peer is away or speaks no bulk")
	}
	return fakeBulk{f, m}, nil
}

type fakeBulk struct {
	f fakeFetcher
	m *member
}

func (b fakeBulk) Close() error { return nil }

func (b fakeBulk) Describe(ctx context.Context, root cid.Cid, recv func([]byte) (bool, error)) ([][]byte, []peer.ID, error) {
	n := 0
	done := errors.New("done")
	entries, err := b.m.store.Source().Describe(ctx, root, func(data []byte) error {
		if b.m.describe != nil {
			data = b.m.describe(n, append([]byte(nil), data...))
		}
		n++
		last, err := recv(data)
		if err == nil && last {
			return done
		}
		return err
	})
	if errors.Is(err, done) {
		// The last block was accepted; what follows is as from a second call.
		entries, err = b.m.store.Source().Describe(ctx, root, func([]byte) error { return nil })
	}
	if err != nil || entries == nil {
		return nil, nil, err
	}
	return b.Have(ctx, entries)
}

func (b fakeBulk) Have(ctx context.Context, entries []cid.Cid) (maps [][]byte, others []peer.ID, err error) {
	for _, c := range entries {
		m, err := b.m.store.Source().Have(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		maps = append(maps, m)
	}
	b.f.net.mu.Lock()
	defer b.f.net.mu.Unlock()
	for _, c := range entries {
		if b.f.net.asked[c] == nil {
			b.f.net.asked[c] = map[peer.ID]bool{}
		}
		b.f.net.asked[c][b.f.id] = true
		for p := range b.f.net.asked[c] {
			if p != b.f.id {
				others = append(others, p)
			}
		}
	}
	return maps, others, nil
}

func (b fakeBulk) Read(ctx context.Context, next func(context.Context) (cid.Cid, int, int, bool), room func() []byte, recv func([]byte) error) error {
	for {
		entry, first, count, ok := next(ctx)
		if !ok {
			return ctx.Err()
		}
		leaf := first
		err := b.m.store.Source().Leaves(ctx, entry, first, count, func(data []byte) error {
			buf := room()
			if err := ctx.Err(); err != nil {
				return err
			}
			if b.m.tamper != nil {
				var err error
				if data, err = b.m.tamper(entry, leaf, data); err != nil {
					return err
				}
			}
			leaf++
			if data == nil {
				return recv(nil)
			}
			if len(data) != len(buf) {
				return errors.New("leaf of another size than declared")
			}
			b.f.net.mu.Lock()
			b.m.sent++
			b.f.net.mu.Unlock()
			copy(buf, data)
			return recv(buf)
		})
		if err != nil {
			return err
		}
	}
}

type fakeSession struct {
	net  *fakeNet
	from []peer.ID
}

func (s fakeSession) GetBlock(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	for _, p := range s.from {
		if m := s.net.get(p); m != nil {
			if b, err := m.store.Blocks().Get(ctx, c); err == nil {
				return b, nil
			}
		}
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s fakeSession) GetBlocks(ctx context.Context, cs []cid.Cid) (<-chan blocks.Block, error) {
	out := make(chan blocks.Block)
	go func() {
		defer close(out)
		for _, c := range cs {
			b, err := s.GetBlock(ctx, c)
			if err != nil {
				return
			}
			select {
			case out <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// Below: stores and packs to test with.

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, Stall: 500 * time.Millisecond, LockWait: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// testKey is a signing key that depends on its name only.
func testKey(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

// noise is size bytes that depend on seed only.
func noise(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for i := 0; i+8 <= size; i += 8 {
		x := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(x >> (8 * j))
		}
	}
	return b
}

func addBytes(t testing.TB, s *Store, data []byte, kind string) Entry {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := s.AddImage(t.Context(), path, kind, "raw")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// smallBase is a base of three chunks or so.
func smallBase(t testing.TB, s *Store) cid.Cid {
	t.Helper()
	c, err := s.PutBase(t.Context(), Base{
		Name: "debian:12", Kernel: addBytes(t, s, noise(1, 5000), "kernel"), Initrd: addBytes(t, s, noise(2, 700), "initrd"),
		Rootfs: addBytes(t, s, noise(3, 600<<10), "rootfs"), Packages: []string{"bash 5"}, Arch: "amd64",
	}, testKey("publisher"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// packOf makes a pack with a small base and one layer of data.
func packOf(t testing.TB, s *Store, name string, layers ...[]byte) cid.Cid {
	t.Helper()
	r := Root{Name: name, Base: smallBase(t, s), Run: RunConfig{VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30}}
	for _, data := range layers {
		r.Layers = append(r.Layers, addBytes(t, s, data, "layer"))
	}
	c, err := s.PutPack(t.Context(), r, testKey("owner"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustFetch(t testing.TB, s *Store, c cid.Cid, from ...peer.ID) Progress {
	t.Helper()
	var last Progress
	if err := s.Fetch(t.Context(), c, FetchOptions{From: from, Progress: func(p Progress) { last = p }}); err != nil {
		t.Fatalf("fetch: %v", err)
	}
	return last
}

// checkPack reads all images of a pack and compares them with what they should be.
func checkPack(t testing.TB, s *Store, c cid.Cid, layers ...[]byte) {
	t.Helper()
	r, err := s.Pack(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range layers {
		path, err := s.Path(r.Layers[i])
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("layer %d has other bytes than were put in", i)
		}
	}
	if err := s.Verify(t.Context(), c); err != nil {
		t.Error(err)
	}
}
