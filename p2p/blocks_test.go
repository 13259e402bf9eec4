package p2p

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p/core/peer"
)

func newBlocks() blockstore.Blockstore {
	return blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
}

// oneLeaf is a Source with a single entry of a single leaf.
type oneLeaf struct{ data []byte }

func (oneLeaf) Describe(context.Context, cid.Cid, func([]byte) error) ([]cid.Cid, error) {
	return nil, nil
}
func (oneLeaf) Have(context.Context, cid.Cid) ([]byte, error) { return []byte{1}, nil }

func (s oneLeaf) Leaves(_ context.Context, _ cid.Cid, _, _ int, send func([]byte) error) error {
	return send(s.data)
}

func TestBlocksAreFoundAndExchanged(t *testing.T) {
	b := blocks.NewBlock([]byte("a block of a pack"))
	full := newBlocks()
	if err := full.Put(ctxT(t), b); err != nil {
		t.Fatal(err)
	}
	a, _ := start(t, func(c *Config) { c.Blocks, c.Source = full, oneLeaf{data: b.RawData()} })
	boot := func(c *Config) { c.Bootstrap, c.Blocks = []string{tcpAddr(t, a)}, newBlocks() }
	hub, _ := start(t, boot)
	far, _ := start(t, boot)
	eventually(t, "full mesh", func() bool { return len(a.Peers()) == 2 && len(hub.Peers()) == 2 && len(far.Peers()) == 2 })
	eventually(t, "the DHT knows the holder", func() bool {
		if err := a.Provide(ctxT(t), b.Cid()); err != nil {
			return false // its routing table is still empty
		}
		found, err := far.Providers(ctxT(t), b.Cid())
		return err == nil && len(found) == 1 && found[0] == a.ID()
	})
	eventually(t, "exchange runs", func() bool { return far.blocks.Running() && a.blocks.Running() })
	s, err := far.Session(ctxT(t), []peer.ID{a.ID()})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.GetBlock(ctxT(t), b.Cid())
	if err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
		t.Fatalf("block by bitswap: %v", err)
	}
	bulk, err := far.Bulk(ctxT(t), a.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer bulk.Close()
	maps, _, err := bulk.Have(ctxT(t), []cid.Cid{b.Cid()})
	if err != nil || len(maps) != 1 || !bytes.Equal(maps[0], []byte{1}) {
		t.Errorf("bulk answers %v, %v", maps, err)
	}
}

func TestNoBlocks(t *testing.T) {
	n, _ := start(t, nil)
	c := blocks.NewBlock(nil).Cid()
	_, e1 := n.Providers(ctxT(t), c)
	_, e2 := n.Session(ctxT(t), nil)
	_, e3 := n.Bulk(ctxT(t), n.ID())
	for _, err := range []error{e1, e2, e3, n.Provide(ctxT(t), c)} {
		if !errors.Is(err, ErrNoBlocks) {
			t.Errorf("got %v, want ErrNoBlocks", err)
		}
	}
}
