package store

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/go-cid"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew")

// sampleRoot uses every field, so that the golden file fixes them all.
func sampleRoot(t testing.TB) Root {
	t.Helper()
	parent := cidOf(cid.DagCBOR, []byte("parent"))
	pub, err := publicKey(testKey("owner"))
	if err != nil {
		t.Fatal(err)
	}
	return Root{
		Version: Version, Name: "hello-server", Description: "says hello", Base: cidOf(cid.DagCBOR, []byte("base")),
		Layers: []Entry{{
			Kind: "layer", Root: cidOf(cid.DagProtobuf, []byte("layer")), Size: 4096, SHA256: bytes.Repeat([]byte{7}, 32),
			Format: "squashfs", Chunker: DefaultChunker,
		}},
		Run: RunConfig{
			VCPU: 2, MemoryBytes: 512 << 20, DiskBytes: 5 << 30,
			Users:   []User{{Name: "bigdog", PasswordHash: "$6$x$y", SSHAuthorizedKeys: []string{"ssh-ed25519 A"}, Groups: []string{"adm"}, Shell: "/bin/bash", Sudo: true}},
			Env:     []EnvVar{{Scope: "system", Key: "A", Value: "b"}},
			Workdir: "/srv", Entrypoint: []string{"python3", "hello.py"}, Expose: []Port{{Port: 8080, Proto: "tcp", Public: true}},
			Health: &Health{Kind: "tcp", Port: 8080, Interval: 1000, Timeout: 500, Retries: 3}, Restart: "always", Init: "agent",
			Partition: "keep", Replicas: 2, GPU: []GPU{{Model: "H100", Count: 1}}, Labels: []EnvVar{{Key: "k", Value: "v"}},
		},
		Parent: &parent, Message: "first", Salt: []byte("salt"), Author: pub,
	}
}

// The bytes of a root node are what packs are named by: they must never change.
func TestRootNodeGolden(t *testing.T) {
	r := sampleRoot(t)
	data, c, err := encodeNode(r.wire(), MaxRoot)
	if err != nil {
		t.Fatal(err)
	}
	got := c.String() + "\n" + hex.EncodeToString(data) + "\n"
	file := filepath.Join("testdata", "root.golden")
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	n, err := decodeRoot(data)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := encodeNode(n.pack.wire(), MaxRoot)
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("decoding and encoding gives other bytes, %v", err)
	}
}

// change decodes a root to a map, changes it, and encodes it canonically.
func change(t testing.TB, edit func(m map[string]any)) []byte {
	t.Helper()
	r := sampleRoot(t)
	data, _, err := encodeNode(r.wire(), MaxRoot)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := cbor.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	if data, err = encoder.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestUnknownKeysAreTolerated(t *testing.T) {
	data := change(t, func(m map[string]any) { m["later"] = map[string]any{"x": []any{1, "y"}} })
	n, err := decodeRoot(data)
	if err != nil || n.pack.Name != "hello-server" {
		t.Errorf("%v", err)
	}
}

func TestBadRootsAreRefused(t *testing.T) {
	v0 := must(cid.Decode("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnoVfa"))
	sha512 := cid.NewCidV1(cid.DagCBOR, append([]byte{0x13, 64}, make([]byte, 64)...))
	identity := cid.NewCidV1(cid.Raw, []byte{0, 1, 'x'})
	tag := func(c cid.Cid) any { return cbor.Tag{Number: 42, Content: append([]byte{0}, c.Bytes()...)} }
	layer := func(m map[string]any) map[any]any { return m["layers"].([]any)[0].(map[any]any) }
	deep := any("end")
	for range 40 {
		deep = []any{deep}
	}
	for name, edit := range map[string]func(m map[string]any){
		"version":          func(m map[string]any) { m["v"] = 2 },
		"kind":             func(m map[string]any) { m["kind"] = "other" },
		"name":             func(m map[string]any) { m["name"] = "Not A Label" },
		"no base":          func(m map[string]any) { delete(m, "base") },
		"base CIDv0":       func(m map[string]any) { m["base"] = tag(v0) },
		"base sha2-512":    func(m map[string]any) { m["base"] = tag(sha512) },
		"base is raw":      func(m map[string]any) { m["base"] = tag(cidOf(cid.Raw, []byte("x"))) },
		"base untagged":    func(m map[string]any) { m["base"] = cidOf(cid.DagCBOR, []byte("x")).Bytes() },
		"inline layer":     func(m map[string]any) { layer(m)["root"] = tag(identity) },
		"layer size 0":     func(m map[string]any) { layer(m)["size"] = 0 },
		"layer size -1":    func(m map[string]any) { layer(m)["size"] = -1 },
		"layer hash short": func(m map[string]any) { layer(m)["sha256"] = []byte{1} },
		"layer chunker":    func(m map[string]any) { layer(m)["chunker"] = "size-1" },
		"layer format":     func(m map[string]any) { layer(m)["format"] = "../../etc" },
		"too many layers": func(m map[string]any) {
			for range MaxLayers {
				m["layers"] = append(m["layers"].([]any), m["layers"].([]any)[0])
			}
		},
		"short author": func(m map[string]any) { m["author"] = []byte{1} },
		"vcpu":         func(m map[string]any) { m["run"].(map[any]any)["vcpu"] = 129 },
		"user name":    func(m map[string]any) { m["run"].(map[any]any)["users"].([]any)[0].(map[any]any)["name"] = "root:x" },
		"port":         func(m map[string]any) { m["run"].(map[any]any)["expose"].([]any)[0].(map[any]any)["port"] = 0 },
		"zero in argv": func(m map[string]any) { m["run"].(map[any]any)["entrypoint"] = []string{"a\x00b"} },
		"deep":         func(m map[string]any) { m["later"] = deep },
		"too long":     func(m map[string]any) { m["about"] = strings.Repeat("x", MaxRoot) },
		"float32":      func(m map[string]any) { m["later"] = float32(1) },
	} {
		if _, err := decodeRoot(change(t, edit)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := change(t, func(map[string]any) {})
	for name, data := range map[string][]byte{
		"empty":         {},
		"trailing byte": append(bytes.Clone(good), 0),
		"cut":           good[:len(good)-1],
		"indefinite":    append(append([]byte{0xbf}, good[1:]...), 0xff),
		"long length":   append([]byte{0xb8, good[0] & 0x1f}, good[1:]...),
		"a list":        {0x80},
	} {
		if _, err := decodeRoot(data); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignatures(t *testing.T) {
	root, other := cidOf(cid.DagCBOR, []byte("root")), cidOf(cid.DagCBOR, []byte("other"))
	key := testKey("owner")
	pub := key.Public().(ed25519.PublicKey)
	block, _, err := sign(root, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkSignature(block, root, pub); err != nil {
		t.Errorf("good signature: %v", err)
	}
	resign := func(edit func(w *wireSig)) []byte {
		var w wireSig
		if err := decoder.Unmarshal(block, &w); err != nil {
			t.Fatal(err)
		}
		edit(&w)
		data, _, err := encodeNode(w, MaxSignature)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, b := range map[string][]byte{
		"of another root": must2(sign(other, key)),
		"by another key":  must2(sign(root, testKey("thief"))),
		"author swapped":  resign(func(w *wireSig) { w.Author = testKey("thief").Public().(ed25519.PublicKey) }),
		"without domain":  resign(func(w *wireSig) { w.Sig = ed25519.Sign(key, root.Bytes()) }),
		"root swapped":    resign(func(w *wireSig) { w.Pack = link{other} }),
		"another kind":    resign(func(w *wireSig) { w.Kind = kindPack }),
		"cut":             resign(func(w *wireSig) { w.Sig = w.Sig[:63] }),
		"too long":        append(bytes.Clone(block), make([]byte, MaxSignature)...),
		"empty":           {},
	} {
		if err := checkSignature(b, root, pub); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func must2(b []byte, _ cid.Cid, err error) []byte { return must(b, err) }

func FuzzDecodeRoot(f *testing.F) {
	r := sampleRoot(f)
	data, _, err := encodeNode(r.wire(), MaxRoot)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := decodeRoot(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error of another kind: %v", err)
			}
			return
		}
		if n.pack != nil {
			if _, _, err := encodeNode(n.pack.wire(), MaxRoot); err != nil {
				t.Errorf("decoded but not encodable: %v", err)
			}
		}
	})
}

// Whatever an interior node says, its parts make up just the size that is asked
// for, and a tree of it ends.
func FuzzInterior(f *testing.F) {
	nodes, leaf := interior{}, cidOf(cid.Raw, []byte("leaf"))
	below := interiorNode(f, nodes, item{leaf, 1})
	f.Add(nodes[interiorNode(f, nodes, item{below, 1}, item{leaf, 9})], int64(10))
	f.Add([]byte{0x0a, 0x02, 0x08, 0x02}, int64(0))
	f.Add([]byte{}, int64(10))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		items, err := parseInterior(data, size)
		if err != nil {
			return
		}
		var sum int64
		for _, it := range items {
			if it.size < 1 || it.size > size {
				t.Fatalf("a part of %d bytes of %d", it.size, size)
			}
			sum += it.size
		}
		if sum != size || len(items) > MaxLinks {
			t.Fatalf("%d parts of %d bytes in all, not %d", len(items), sum, size)
		}
	})
}
