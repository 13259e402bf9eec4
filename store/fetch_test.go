package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

func TestFetchBringsAPackWithItsBase(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	layer := noise(10, 5<<20)
	c := packOf(t, origin, "hello", layer)

	p := mustFetch(t, node, c, "origin")
	if p.Total != p.Done || p.Fetched != p.Total || p.Local != 0 {
		t.Errorf("progress at the end: %+v", p)
	}
	checkPack(t, node, c, layer)
	whole, err := node.Complete(t.Context(), c)
	if err != nil || !whole {
		t.Errorf("complete = %v, %v", whole, err)
	}
	pins, err := node.Pins(t.Context())
	if err != nil || len(pins) != 1 || pins[0] != c {
		t.Errorf("pins = %v, %v", pins, err)
	}
	r, err := node.Pack(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	path, err := node.Path(r.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o444 {
		t.Errorf("image file: %v, %v", st.Mode(), err)
	}

	before := net.leavesSent("origin")
	if p := mustFetch(t, node, c, "origin"); p.Fetched != 0 {
		t.Errorf("a second fetch moved %d bytes", p.Fetched)
	}
	if n := net.leavesSent("origin") - before; n != 0 {
		t.Errorf("a second fetch moved %d leaves", n)
	}
}

func TestFetchWithoutNetworkOrPeer(t *testing.T) {
	node := openStore(t, t.TempDir())
	c := cidOf(cid.DagCBOR, []byte("nothing"))
	if err := node.Fetch(t.Context(), c, FetchOptions{}); !errors.Is(err, ErrNoPeer) {
		t.Errorf("without a network: %v", err)
	}
	net := newFakeNet()
	net.join("node", node)
	net.join("empty", openStore(t, t.TempDir()))
	if err := node.Fetch(t.Context(), c, FetchOptions{From: []peer.ID{"empty", "nobody"}}); !errors.Is(err, ErrNoPeer) {
		t.Errorf("no peer has it: %v", err)
	}
}

// Leaves that any local image has are copied, not fetched.
func TestFetchBorrowsLocalChunks(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	old := noise(20, 6<<20)
	updated := append([]byte("changed"), old...)
	mustFetch(t, node, packOf(t, origin, "app", old), "origin")
	p := mustFetch(t, node, packOf(t, origin, "app", updated), "origin")
	if p.Fetched > 1<<20 || p.Local < 4<<20 {
		t.Errorf("of %d bytes %d came from the peer and %d from this machine", p.Total, p.Fetched, p.Local)
	}
}

func TestFetchResumesAfterAbort(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		t.Run(fmt.Sprintf("reopen=%v", reopen), func(t *testing.T) {
			net := newFakeNet()
			origin := openStore(t, t.TempDir())
			net.join("origin", origin)
			layer := noise(30, 24<<20)
			c := packOf(t, origin, "big", layer)
			dir := t.TempDir()
			node, err := Open(Config{Dir: dir, Stall: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			m := net.join("node", node)
			_ = m
			ctx, cancel := context.WithCancel(t.Context())
			var sent atomic.Int64
			net.get("origin").tamper = func(_ cid.Cid, _ int, data []byte) ([]byte, error) {
				if sent.Add(int64(len(data))) > int64(len(layer))/2 {
					cancel()
				}
				return data, nil
			}
			if err := node.Fetch(ctx, c, FetchOptions{From: []peer.ID{"origin"}}); !errors.Is(err, context.Canceled) {
				t.Fatalf("aborted fetch: %v", err)
			}
			net.get("origin").tamper = nil
			r, err := origin.Pack(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := node.Path(r.Layers[0]); !errors.Is(err, ErrIncomplete) {
				t.Errorf("path of half an image: %v", err)
			}
			if reopen {
				if err := node.Close(); err != nil {
					t.Fatal(err)
				}
				node = openStore(t, dir)
				net.join("node", node)
			} else {
				t.Cleanup(func() { node.Close() })
			}
			p := mustFetch(t, node, c, "origin")
			if p.Fetched > p.Total*55/100 {
				t.Errorf("resumed fetch moved %d of %d bytes", p.Fetched, p.Total)
			}
			checkPack(t, node, c, layer)
		})
	}
}

// A leaf that the journal does not list is hashed before it counts.
func TestResumeDistrustsWhatFollowsTheCheckpoint(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	layer := noise(31, 4<<20)
	c := packOf(t, origin, "torn", layer)
	r, err := origin.Pack(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	e := r.Layers[0]
	// As after a power cut: the file has its size, some of it was written and is
	// right, some is not, and the index knows nothing.
	torn := make([]byte, len(layer))
	copy(torn, layer[:2<<20])
	copy(torn[3<<20:], "garbage")
	if _, err := node.partRecord(e); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(node.partPath(e.Root), torn, 0o600); err != nil {
		t.Fatal(err)
	}
	p := mustFetch(t, node, c, "origin")
	if p.Fetched < 2<<20 || p.Fetched > p.Total-(1<<20) {
		t.Errorf("fetched %d of %d", p.Fetched, p.Total)
	}
	checkPack(t, node, c, layer)
}

func TestFetchesOfOnePackCoalesce(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	layer := noise(40, 8<<20)
	c := packOf(t, origin, "one", layer)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := node.Fetch(t.Context(), c, FetchOptions{From: []peer.ID{"origin"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r, err := node.Pack(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	whole := 0
	entries, err := node.allEntries(node1(t, node, c))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		tr, err := readTree(e, node.node)
		if err != nil {
			t.Fatal(err)
		}
		whole += tr.leaves()
	}
	if n := net.leavesSent("origin"); n != whole {
		t.Errorf("origin sent %d leaves for %d (%d layers)", n, whole, len(r.Layers))
	}
}

func node1(t *testing.T, s *Store, c cid.Cid) node {
	t.Helper()
	n, err := s.root(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Two packs that share a base, fetched at once, move and store it once.
func TestPacksShareTheirBase(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	a, b := packOf(t, origin, "a", noise(50, 1<<20)), packOf(t, origin, "b", noise(51, 1<<20))
	var wg sync.WaitGroup
	var fetched atomic.Int64
	for _, c := range []cid.Cid{a, b} {
		wg.Go(func() { fetched.Add(mustFetch(t, node, c, "origin").Fetched) })
	}
	wg.Wait()
	if want := int64(2<<20 + 600<<10 + 5700); fetched.Load() != want {
		t.Errorf("fetched %d bytes, want %d", fetched.Load(), want)
	}
	files, err := filepath.Glob(filepath.Join(node.cfg.Dir, "images", "*"))
	if err != nil || len(files) != 5 {
		t.Errorf("image files: %v, %v", files, err)
	}
}

// An image with repeats in it moves each chunk once.
func TestRepeatsMoveOnce(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	layer := []byte(strings.Repeat(string(noise(60, 1<<20)), 8))
	c := packOf(t, origin, "zeros", layer, make([]byte, 9<<20))
	p := mustFetch(t, node, c, "origin")
	if p.Fetched > 4<<20 {
		t.Errorf("fetched %d of %d bytes", p.Fetched, p.Total)
	}
	checkPack(t, node, c, layer, make([]byte, 9<<20))
}

func TestHostilePeersDoNotSpoilAFetch(t *testing.T) {
	flip := func(_ cid.Cid, _ int, data []byte) ([]byte, error) {
		if data == nil {
			return nil, nil
		}
		bad := append([]byte(nil), data...)
		bad[len(bad)/2] ^= 1
		return bad, nil
	}
	for name, tamper := range map[string]func(cid.Cid, int, []byte) ([]byte, error){
		"wrong bytes":  flip,
		"too short":    func(_ cid.Cid, _ int, d []byte) ([]byte, error) { return d[:len(d)-1], nil },
		"too long":     func(_ cid.Cid, _ int, d []byte) ([]byte, error) { return append(d[:len(d):len(d)], 0), nil },
		"ends at once": func(cid.Cid, int, []byte) ([]byte, error) { return nil, errors.New("reset") },
		"has it not":   func(cid.Cid, int, []byte) ([]byte, error) { return nil, nil },
		"ends at leaf 3": func(_ cid.Cid, i int, d []byte) ([]byte, error) {
			if i >= 3 {
				return nil, errors.New("reset")
			}
			return d, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			net := newFakeNet()
			origin, liar, node := openStore(t, t.TempDir()), openStore(t, t.TempDir()), openStore(t, t.TempDir())
			net.join("origin", origin)
			net.join("liar", liar)
			net.join("node", node)
			layer := noise(70, 6<<20)
			c := packOf(t, origin, "hello", layer)
			mustFetch(t, liar, c, "origin")
			net.get("liar").tamper = tamper
			mustFetch(t, node, c, "liar", "origin")
			checkPack(t, node, c, layer)
		})
	}
}

func TestHostileDescriptionsAreRefused(t *testing.T) {
	net := newFakeNet()
	origin, liar, node := openStore(t, t.TempDir()), openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("liar", liar)
	net.join("node", node)
	c := packOf(t, origin, "hello", noise(80, 3<<20))
	mustFetch(t, liar, c, "origin")
	for n := range 7 { // root, signature, base, signature, interior nodes
		net.get("liar").describe = func(i int, data []byte) []byte {
			if i == n {
				data[len(data)-1] ^= 1
			}
			return data
		}
		fresh := openStore(t, t.TempDir())
		net.join("fresh", fresh)
		err := fresh.Fetch(t.Context(), c, FetchOptions{From: []peer.ID{"liar"}})
		if n < 6 && !errors.Is(err, ErrCorrupt) {
			t.Errorf("block %d changed: %v", n, err)
		}
		if n < 6 && net.leavesSent("liar") != 0 {
			t.Errorf("block %d changed, and leaves were asked for", n)
		}
		if n < 6 && net.broke["liar"] != n+1 {
			t.Errorf("block %d changed: told of the liar %d times", n, net.broke["liar"])
		}
		if infos, err := fresh.List(t.Context()); n < 6 && (err != nil || len(infos) != 0) {
			t.Errorf("block %d changed: %v, %v", n, infos, err)
		}
	}
	mustFetch(t, node, c, "liar", "origin")
}

// A signed pack whose entry declares another file hash than its chunks give.
func TestWrongDeclaredHashLeavesNothing(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	e := addBytes(t, origin, noise(90, 1<<20), "layer")
	r := Root{Version: Version, Name: "bad", Base: smallBase(t, origin), Layers: []Entry{e}}
	lie := sha256.Sum256([]byte("another file"))
	r.Layers[0].SHA256 = lie[:]
	r.Author, _ = publicKey(testKey("owner"))
	data, c, err := encodeNode(r.wire(), MaxRoot)
	if err != nil {
		t.Fatal(err)
	}
	seal, sig, err := sign(c, testKey("owner"))
	if err != nil {
		t.Fatal(err)
	}
	if err := origin.putDescription(&description{roots: []signed{{c, kindPack, data, sig, seal}}}, true); err != nil {
		t.Fatal(err)
	}
	if err := node.Fetch(t.Context(), c, FetchOptions{From: []peer.ID{"origin"}}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("fetch: %v", err)
	}
	if len(net.broke) != 0 {
		t.Errorf("the bad pack is its author's fault, not that of %v", net.broke)
	}
	if _, err := os.Stat(node.partPath(e.Root)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a part is left: %v", err)
	}
	if _, err := node.Path(e); !errors.Is(err, ErrNotFound) {
		t.Errorf("path: %v", err)
	}
}

// Peers without the bulk protocol serve leaves by bitswap, once the nodes are
// here.
func TestBitswapIsTheFallback(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	net.join("origin", origin)
	net.join("node", node)
	layer := noise(95, 6<<20)
	c := packOf(t, origin, "hello", layer)
	ctx, cancel := context.WithCancel(t.Context())
	net.get("origin").tamper = func(cid.Cid, int, []byte) ([]byte, error) {
		cancel()
		return nil, errors.New("no bulk any more")
	}
	if err := node.Fetch(ctx, c, FetchOptions{From: []peer.ID{"origin"}}); err == nil {
		t.Fatal("fetch from a peer that gives nothing")
	}
	net.get("origin").noBulk = true
	mustFetch(t, node, c, "origin")
	checkPack(t, node, c, layer)
	if n := net.leavesSent("origin"); n != 0 {
		t.Errorf("%d leaves came over bulk streams", n)
	}
}

func TestFiveFetchersShare(t *testing.T) {
	net := newFakeNet()
	origin := openStore(t, t.TempDir())
	net.join("origin", origin)
	net.get("origin").tamper = func(_ cid.Cid, _ int, d []byte) ([]byte, error) {
		time.Sleep(time.Millisecond) // a link, not a wait: the origin is the narrow place
		return d, nil
	}
	layer := noise(99, 32<<20)
	c := packOf(t, origin, "popular", layer)
	var wg sync.WaitGroup
	for i := range 5 {
		s := openStore(t, t.TempDir())
		net.join(peer.ID(fmt.Sprint("node", i)), s)
		wg.Go(func() {
			mustFetch(t, s, c, "origin")
			checkPack(t, s, c, layer)
		})
	}
	wg.Wait()
	whole := 0
	entries, err := origin.allEntries(node1(t, origin, c))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		tr, err := readTree(e, origin.node)
		if err != nil {
			t.Fatal(err)
		}
		whole += tr.leaves()
	}
	copies := float64(net.leavesSent("origin")) / float64(whole)
	t.Logf("the origin sent %.2f copies", copies)
	if copies > 2.5 {
		t.Errorf("the origin sent %.2f copies", copies)
	}
}
