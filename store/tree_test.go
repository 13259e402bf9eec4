package store

import (
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"pgregory.net/rapid"
)

// interiorNode makes a UnixFS file node over children with declared sizes.
func interiorNode(t testing.TB, nodes interior, children ...item) cid.Cid {
	t.Helper()
	fs := unixfs.NewFSNode(unixfs.TFile)
	nd := &merkledag.ProtoNode{}
	nd.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: 0x12})
	for _, c := range children {
		fs.AddBlockSize(uint64(c.size))
		if err := nd.AddRawLink("", &ipld.Link{Cid: c.cid, Size: uint64(c.size)}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := fs.GetBytes()
	if err != nil {
		t.Fatal(err)
	}
	nd.SetData(data)
	if err := nodes.Add(context.Background(), nd); err != nil {
		t.Fatal(err)
	}
	return nd.Cid()
}

func TestHostileTreesAreRefused(t *testing.T) {
	const k = 128 << 10
	leaf := cidOf(cid.Raw, []byte("leaf"))
	other := cidOf(cid.Raw, []byte("other"))
	for name, tt := range map[string]struct {
		size  int64
		build func(n interior) cid.Cid
		good  bool
	}{
		"two chunks":       {2 * k, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, k}, item{other, k}) }, true},
		"the same twice":   {2 * k, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, k}, item{leaf, k}) }, true},
		"one leaf":         {k, func(interior) cid.Cid { return leaf }, true},
		"declared longer":  {3 * k, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, k}, item{other, k}) }, false},
		"declared shorter": {k, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, k}, item{other, k}) }, false},
		"empty chunk":      {k, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, k}, item{other, 0}) }, false},
		"tiny chunk":       {k + 2, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, 1}, item{other, k + 1}) }, false},
		"huge chunk":       {2 * MaxChunk, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, 2 * MaxChunk}) }, false},
		"huge sizes":       {k, func(n interior) cid.Cid { return interiorNode(t, n, item{leaf, 1 << 62}, item{other, 1 << 62}) }, false},
		"no links":         {k, func(n interior) cid.Cid { return interiorNode(t, n) }, false},
		"too many links": {(MaxLinks + 1) * k, func(n interior) cid.Cid {
			var c []item
			for range MaxLinks + 1 {
				c = append(c, item{leaf, k})
			}
			return interiorNode(t, n, c...)
		}, false},
		"too deep": {k, func(n interior) cid.Cid {
			c := interiorNode(t, n, item{leaf, k})
			for range MaxDepth {
				c = interiorNode(t, n, item{c, k})
			}
			return c
		}, false},
		"mixed depths": {3 * k, func(n interior) cid.Cid {
			return interiorNode(t, n, item{interiorNode(t, n, item{leaf, k}, item{other, k}), 2 * k}, item{leaf, k})
		}, false},
		"one node, two sizes": {5 * k, func(n interior) cid.Cid {
			c := interiorNode(t, n, item{leaf, k}, item{other, k})
			return interiorNode(t, n, item{c, 2 * k}, item{c, 3 * k})
		}, false},
		"a link to a pack": {k, func(n interior) cid.Cid { return interiorNode(t, n, item{cidOf(cid.DagCBOR, nil), k}) }, false},
		"sha2-512": {k, func(n interior) cid.Cid {
			return interiorNode(t, n, item{cid.NewCidV1(cid.Raw, append([]byte{0x13, 64}, make([]byte, 64)...)), k})
		}, false},
		"not protobuf": {k, func(n interior) cid.Cid {
			c := cidOf(cid.DagProtobuf, []byte("junk"))
			n[c] = []byte("junk")
			return c
		}, false},
		"a directory": {k, func(n interior) cid.Cid {
			nd := unixfs.EmptyDirNode()
			nd.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: 0x12})
			n[nd.Cid()] = nd.RawData()
			return nd.Cid()
		}, false},
	} {
		nodes := interior{}
		e := Entry{Kind: "layer", Root: tt.build(nodes), Size: tt.size, SHA256: make([]byte, 32), Format: "raw", Chunker: DefaultChunker}
		got, err := readTree(e, nodes.get)
		if tt.good && err != nil || !tt.good && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if tt.good && got.ends[got.leaves()-1] != tt.size {
			t.Errorf("%s: ends at %d", name, got.ends[got.leaves()-1])
		}
	}
}

// Repeated nodes make a small DAG large: the declared size bounds the work.
func TestRepeatedNodesAreBounded(t *testing.T) {
	const k = 128 << 10
	nodes := interior{}
	size := int64(k)
	c := cidOf(cid.Raw, []byte("leaf"))
	for range 2 {
		var links []item
		for range MaxLinks {
			links = append(links, item{c, size})
		}
		c = interiorNode(t, nodes, links...)
		size *= MaxLinks
	}
	e := Entry{Kind: "layer", Root: c, Size: size, SHA256: make([]byte, 32), Format: "raw", Chunker: "size-1048576"}
	if _, err := readTree(e, nodes.get); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a million leaves of 128 KiB where chunks are 1 MiB: %v", err)
	}
	if _, err := totalSize([]Entry{e}, 64<<30); !errors.Is(err, ErrTooLarge) {
		t.Errorf("128 GiB: %v", err)
	}
}

func TestBitsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		b, model := newBits(n), map[int]bool{}
		for _, i := range rapid.SliceOf(rapid.IntRange(0, n-1)).Draw(t, "set") {
			b.set(i)
			model[i] = true
		}
		for i := range n + 20 {
			if b.has(i) != model[i] {
				t.Fatalf("bit %d", i)
			}
		}
	})
}

func TestAddImage(t *testing.T) {
	s := openStore(t, t.TempDir())
	data := noise(150, 3<<20)
	a, b := addBytes(t, s, data, "layer"), addBytes(t, s, data, "layer")
	if a.Root != b.Root || string(a.SHA256) != string(b.SHA256) {
		t.Errorf("the same file as %v and %v", a, b)
	}
	if n := imageFiles(t, s); n != 1 {
		t.Errorf("%d image files", n)
	}
	small := addBytes(t, s, []byte("x"), "kernel")
	if small.Root.Type() != cid.Raw || small.Size != 1 {
		t.Errorf("a one-byte image: %+v", small)
	}
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"empty": empty, "folder": dir, "absent": filepath.Join(dir, "absent")} {
		if _, err := s.AddImage(t.Context(), path, "layer", "raw"); err == nil {
			t.Errorf("%s file was added", name)
		}
	}
	if _, err := s.AddImage(t.Context(), empty, "No Word", "raw"); err == nil {
		t.Error("a bad kind was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddImage(ctx, path, "layer", "raw"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

func TestPutRefusesWhatIsNotWhole(t *testing.T) {
	s := openStore(t, t.TempDir())
	base := smallBase(t, s)
	e := addBytes(t, s, noise(151, 1000), "layer")
	missing := e
	missing.Root = cidOf(cid.Raw, []byte("missing"))
	if _, err := s.PutPack(t.Context(), Root{Name: "x", Base: base, Layers: []Entry{missing}}, testKey("o")); !errors.Is(err, ErrIncomplete) {
		t.Errorf("missing layer: %v", err)
	}
	lying := e
	lying.Size++
	if _, err := s.PutPack(t.Context(), Root{Name: "x", Base: base, Layers: []Entry{lying}}, testKey("o")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another size: %v", err)
	}
	if _, err := s.PutPack(t.Context(), Root{Name: "x", Base: e.Root}, testKey("o")); err == nil {
		t.Error("an image as base was taken")
	}
	if _, err := s.PutPack(t.Context(), Root{Name: "Bad Name", Base: base}, testKey("o")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("bad name: %v", err)
	}
	a, err := s.PutPack(t.Context(), Root{Name: "x", Base: base, Layers: []Entry{e}}, testKey("o"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.PutPack(t.Context(), Root{Name: "x", Base: base, Layers: []Entry{e}}, testKey("o"))
	if err != nil || a != b {
		t.Errorf("the same pack twice: %v and %v, %v", a, b, err)
	}
	if _, err := s.Base(t.Context(), a); !errors.Is(err, ErrNotFound) {
		t.Errorf("a pack read as base: %v", err)
	}
}

func TestNames(t *testing.T) {
	s := openStore(t, t.TempDir())
	c := smallBase(t, s)
	if _, err := s.Resolve("debian:12"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown name: %v", err)
	}
	if err := s.SetName("debian:12", c, testKey("p").Public().(ed25519.PublicKey)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Resolve("debian:12"); err != nil || got != c {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "Debian", "a/b", "../x", "a:b:c"} {
		if err := s.SetName(bad, c, nil); err == nil {
			t.Errorf("name %q was taken", bad)
		}
	}
	names, err := s.Names()
	if err != nil || len(names) != 1 || names[0].Name != "debian:12" || names[0].CID != c {
		t.Errorf("%v, %v", names, err)
	}
}
