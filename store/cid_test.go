package store

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// oddCIDs are well-formed or nearly so, and name nothing a store has.
func oddCIDs(t testing.TB) map[string]cid.Cid {
	t.Helper()
	sum := func(kind uint64, length int) multihash.Multihash {
		h, err := multihash.Sum([]byte("odd"), kind, length)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	whole := sum(multihash.SHA2_256, -1)
	return map[string]cid.Cid{
		"undefined":        cid.Undef,
		"identity, empty":  must(cid.Decode("bafyqaaa")),
		"identity":         cid.NewCidV1(cid.DagCBOR, sum(multihash.IDENTITY, -1)),
		"identity, raw":    cid.NewCidV1(cid.Raw, sum(multihash.IDENTITY, -1)),
		"cut sha2-256":     cid.NewCidV1(cid.DagCBOR, sum(multihash.SHA2_256, 20)),
		"sha1":             cid.NewCidV1(cid.DagCBOR, sum(multihash.SHA1, -1)),
		"sha2-512":         cid.NewCidV1(cid.DagCBOR, sum(multihash.SHA2_512, -1)),
		"version 0":        cid.NewCidV0(whole),
		"length that lies": cid.NewCidV1(cid.DagCBOR, whole[:20]),
		"no hash":          cid.NewCidV1(cid.DagCBOR, nil),
	}
}

// callAll gives c to everything exported that takes one.
func callAll(ctx context.Context, s *Store, c cid.Cid) map[string]error {
	src, blocks := s.Source(), s.Blocks()
	e := Entry{Kind: "layer", Root: c, Size: 1, SHA256: make([]byte, 32), Format: "raw", Chunker: DefaultChunker}
	drop := func([]byte) error { return nil }
	out := map[string]error{}
	_, out["Describe"] = src.Describe(ctx, c, drop)
	_, out["Have"] = src.Have(ctx, c)
	out["Leaves"] = src.Leaves(ctx, c, 0, 2, drop)
	_, out["Blocks.Get"] = blocks.Get(ctx, c)
	_, out["Blocks.Has"] = blocks.Has(ctx, c)
	_, out["Blocks.GetSize"] = blocks.GetSize(ctx, c)
	_, out["Pack"] = s.Pack(ctx, c)
	_, out["Base"] = s.Base(ctx, c)
	_, out["Path"] = s.Path(e)
	_, out["Complete"] = s.Complete(ctx, c)
	out["Verify"] = s.Verify(ctx, c)
	out["Export"] = s.Export(ctx, c, io.Discard)
	out["Announce"] = s.Announce(ctx, c)
	out["Fetch"] = s.Fetch(ctx, c, FetchOptions{})
	out["Pin"] = s.Pin(ctx, c)
	out["SetName"] = s.SetName("odd:1", c, nil)
	_, out["GC"] = s.GC(ctx, func() []cid.Cid { return []cid.Cid{c} })
	out["Remove"] = s.Remove(ctx, c)
	out["Unpin"] = s.Unpin(ctx, c)
	_, out["PutPack"] = s.PutPack(ctx, Root{Name: "odd", Base: c, Layers: []Entry{e}}, testKey("owner"))
	_, out["PutBase"] = s.PutBase(ctx, Base{Name: "odd", Kernel: e, Rootfs: e}, testKey("owner"))
	return out
}

// Peers and specs name what they like: an odd CID is refused or not here, and
// never more than that.
func TestOddCIDs(t *testing.T) {
	s := openStore(t, t.TempDir())
	s.SetFetcher(fakeFetcher{newFakeNet(), "node"})
	fine := map[string]bool{"Describe": true, "Have": true, "Leaves": true, "Blocks.Has": true, "GC": true, "Unpin": true}
	for name, c := range oddCIDs(t) {
		if err := CheckCID(c); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: CheckCID: %v", name, err)
		}
		for call, err := range callAll(t.Context(), s, c) {
			if (err == nil) != fine[call] {
				t.Errorf("%s of %s: %v", call, name, err)
			}
		}
		if pins, err := s.Pins(t.Context()); err != nil || len(pins) != 0 {
			t.Errorf("%s: pins %v, %v", name, pins, err)
		}
	}
	checkNothing(t, s)
}

func FuzzCIDs(f *testing.F) {
	for _, c := range oddCIDs(f) {
		f.Add(c.Bytes())
	}
	f.Add(cidOf(cid.DagCBOR, []byte("even")).Bytes())
	f.Add([]byte(strings.Repeat("\xff", 40)))
	s := openStore(f, f.TempDir())
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := cid.Cast(raw)
		if err != nil {
			return
		}
		callAll(t.Context(), s, c)
	})
}
