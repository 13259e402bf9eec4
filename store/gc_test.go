package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	bolt "go.etcd.io/bbolt"
)

func imageFiles(t testing.TB, s *Store) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.cfg.Dir, "images", "*.img"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func collect(t testing.TB, s *Store, keep ...cid.Cid) int64 {
	t.Helper()
	freed, err := s.GC(t.Context(), func() []cid.Cid { return keep })
	if err != nil {
		t.Fatal(err)
	}
	return freed
}

func TestGCKeepsWhatIsReferredTo(t *testing.T) {
	s := openStore(t, t.TempDir())
	s.cfg.Grace = -time.Hour // nothing is young
	a, b := packOf(t, s, "a", noise(110, 100<<10)), packOf(t, s, "b", noise(111, 200<<10))
	if freed := collect(t, s); freed != 0 {
		t.Errorf("freed %d bytes of pinned packs", freed)
	}
	if err := s.Unpin(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if freed := collect(t, s, b); freed != 0 {
		t.Errorf("freed %d bytes of a pack that is in use", freed)
	}
	if freed := collect(t, s); freed != 200<<10 {
		t.Errorf("freed %d bytes", freed)
	}
	if _, err := s.Pack(t.Context(), b); !errors.Is(err, ErrNotFound) {
		t.Errorf("pack after collection: %v", err)
	}
	checkPack(t, s, a, noise(110, 100<<10))

	if err := s.Remove(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), a); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if freed := collect(t, s); freed != 100<<10 {
		t.Errorf("freed %d bytes; the base is pinned still", freed)
	}
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != 1 || infos[0].Kind != "base" {
		t.Fatalf("%v, %v", infos, err)
	}
	if err := s.SetName("debian:12", infos[0].CID, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Unpin(t.Context(), infos[0].CID); err != nil {
		t.Fatal(err)
	}
	if freed := collect(t, s); freed != 0 {
		t.Errorf("freed %d bytes of a named base", freed)
	}
	if err := s.Remove(t.Context(), infos[0].CID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("debian:12"); !errors.Is(err, ErrNotFound) {
		t.Errorf("name of a removed base: %v", err)
	}
	collect(t, s)
	checkNothing(t, s)
}

// Images no pack refers to yet stay for a while: a build may be under way.
func TestGCSparesTheYoung(t *testing.T) {
	s := openStore(t, t.TempDir())
	e := addBytes(t, s, noise(112, 50<<10), "layer")
	if freed := collect(t, s); freed != 0 {
		t.Errorf("freed %d bytes of a young image", freed)
	}
	s.cfg.Grace = -time.Hour
	if err := s.Pin(t.Context(), e.Root); err != nil {
		t.Fatal(err)
	}
	if freed := collect(t, s); freed != 0 {
		t.Errorf("freed %d bytes of a pinned image", freed)
	}
	if err := s.Unpin(t.Context(), e.Root); err != nil {
		t.Fatal(err)
	}
	if freed := collect(t, s); freed != 50<<10 {
		t.Errorf("freed %d bytes", freed)
	}
	if _, err := s.Path(e); !errors.Is(err, ErrNotFound) {
		t.Errorf("path: %v", err)
	}
}

// Whatever a spec names as its pack, and whatever is damaged, the rest is
// collected; what could not be followed stays.
func TestGCGoesOnOverWhatItCannotFollow(t *testing.T) {
	for name, spoil := range map[string]func(s *Store, pack signed) cid.Cid{
		"a signature block": func(_ *Store, pack signed) cid.Cid { return pack.sig },
		"an interior node's hash": func(s *Store, pack signed) cid.Cid {
			n := node1(t, s, pack.cid)
			return cidOfDigest(cid.DagCBOR, digestOf(n.entries()[0].Root))
		},
		"a damaged root": func(s *Store, pack signed) cid.Cid {
			putRaw(t, s, bNodes, pack.cid.Hash()[2:], pack.data[:len(pack.data)/2])
			return pack.cid
		},
		"a damaged record": func(s *Store, pack signed) cid.Cid {
			putRaw(t, s, bRoots, pack.cid.Bytes(), []byte("x"))
			return pack.cid
		},
		"a damaged signature CID": func(s *Store, pack signed) cid.Cid {
			raw := must(encoder.Marshal(rootRecord{Kind: kindPack, Sig: must(cid.Decode("bafyqaaa")).Bytes()}))
			putRaw(t, s, bRoots, pack.cid.Bytes(), raw)
			return pack.cid
		},
		"a damaged interior node": func(s *Store, pack signed) cid.Cid {
			n := node1(t, s, pack.cid)
			putRaw(t, s, bNodes, n.entries()[0].Root.Hash()[2:], []byte("x"))
			return pack.cid
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			s.cfg.Grace = -time.Hour
			kept, old := packOf(t, s, "kept", noise(114, 1<<20)), packOf(t, s, "old", noise(115, 50<<10))
			pack, _, err := s.signedRoot(kept)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Unpin(t.Context(), old); err != nil {
				t.Fatal(err)
			}
			c := spoil(s, pack)
			if freed := collect(t, s, c); freed < 50<<10 {
				t.Errorf("freed %d bytes", freed)
			}
			if size, err := s.Blocks().GetSize(t.Context(), c); err != nil {
				t.Errorf("the node named: %d bytes, %v", size, err)
			}
			if name != "a damaged root" && imageFiles(t, s) != 4 {
				t.Errorf("%d images", imageFiles(t, s))
			}
		})
	}
}

func putRaw(t testing.TB, s *Store, bucket, key, value []byte) {
	t.Helper()
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(key, value) }); err != nil {
		t.Fatal(err)
	}
}

func TestGCSparesFetchesInFlight(t *testing.T) {
	net := newFakeNet()
	origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	node.cfg.Grace = -time.Hour
	net.join("origin", origin)
	net.join("node", node)
	layer := noise(113, 6<<20)
	c := packOf(t, origin, "hello", layer)
	net.get("origin").tamper = func(_ cid.Cid, leaf int, d []byte) ([]byte, error) {
		if leaf%8 == 3 {
			if _, err := node.GC(context.Background(), nil); err != nil {
				t.Error(err)
			}
		}
		return d, nil
	}
	mustFetch(t, node, c, "origin")
	checkPack(t, node, c, layer)
}

// Marking is right whatever the packs share: against a model that remembers.
func TestGCAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := openStore(t, t.TempDir())
	s.cfg.Grace = -time.Hour
	base := smallBase(t, s)
	layers := make([][]byte, 5)
	for i := range layers {
		layers[i] = noise(uint64(120+i), 1000*(i+1))
	}
	for round := range 12 {
		kept, want := map[cid.Cid]bool{}, map[int]bool{}
		for range 1 + r.IntN(4) {
			root := Root{Name: "p", Base: base}
			use := r.Perm(len(layers))[:r.IntN(4)]
			for _, i := range use {
				root.Layers = append(root.Layers, addBytes(t, s, layers[i], "layer"))
			}
			c, err := s.PutPack(t.Context(), root, testKey("owner"))
			if err != nil {
				t.Fatal(err)
			}
			if kept[c] = kept[c] || r.IntN(2) == 0; !kept[c] {
				if err := s.Unpin(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				continue
			}
			for _, i := range use {
				want[i] = true
			}
		}
		collect(t, s)
		if got := imageFiles(t, s); got != len(want)+3 { // and the base's
			t.Fatalf("round %d: %d images, want %d", round, got, len(want)+3)
		}
		for c := range kept {
			if whole, err := s.Complete(t.Context(), c); err != nil || whole != kept[c] {
				t.Fatalf("round %d: complete %v, %v; kept %v", round, whole, err, kept[c])
			}
			if err := s.Unpin(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestBlocksAreVerifiedOnRead(t *testing.T) {
	s := openStore(t, t.TempDir())
	s.cfg.Recheck = 1
	data := noise(130, 1<<20)
	e := addBytes(t, s, data, "layer")
	n := 0
	keys, err := s.Blocks().AllKeysChan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for c := range keys {
		b, err := s.Blocks().Get(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		size, err := s.Blocks().GetSize(t.Context(), c)
		if err != nil || size != len(b.RawData()) {
			t.Errorf("size %d of %d bytes, %v", size, len(b.RawData()), err)
		}
		n++
	}
	tr, err := readTree(e, s.node)
	if err != nil {
		t.Fatal(err)
	}
	if n != tr.leaves()+len(tr.nodes) {
		t.Errorf("%d keys for %d leaves and %d nodes", n, tr.leaves(), len(tr.nodes))
	}
	path, err := s.Path(e)
	if err != nil {
		t.Fatal(err)
	}
	rot := bytes.Clone(data)
	off, _ := tr.span(1)
	rot[off] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, rot, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Blocks().Get(t.Context(), cidOfDigest(cid.Raw, tr.digest(1))); err == nil {
		t.Error("a rotten chunk was served")
	}
	if _, err := s.Blocks().Get(t.Context(), cidOfDigest(cid.Raw, tr.digest(0))); err != nil {
		t.Errorf("a good chunk: %v", err)
	}
	if err := s.Verify(t.Context(), e.Root); !errors.Is(err, ErrCorrupt) {
		t.Errorf("verify: %v", err)
	}
}

func TestOpenMendsWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	layer := noise(140, 300<<10)
	c := packOf(t, s, "hello", layer)
	lost := addBytes(t, s, noise(141, 10<<10), "layer")
	half := addBytes(t, s, noise(142, 10<<10), "layer")
	path, err := s.Path(lost)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, LockWait: 10 * time.Millisecond}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	// Renamed, and killed before the record said so.
	r, err := s.image(half.Root)
	if err != nil {
		t.Fatal(err)
	}
	r.Whole = false
	if err := s.index(&r, &tree{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, "images", "stray.img")
	if err := os.WriteFile(stray, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	checkPack(t, s, c, layer)
	if _, err := s.Path(lost); !errors.Is(err, ErrNotFound) {
		t.Errorf("lost image: %v", err)
	}
	if _, err := s.Path(half); !errors.Is(err, ErrIncomplete) {
		t.Errorf("unrecorded image: %v", err)
	}
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stray file: %v", err)
	}
}
