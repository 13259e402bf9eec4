package exchange

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// transfers says how many transfers are made, of how many blocks, and how long
// they are. The libraries' defaults lose blocks when there are more messages than
// streams (about 75) and more wants than the server queues (1,024). The quick tier
// is just past that; the slow one, without the race detector, has the twenty
// transfers of 64 KiB blocks that the project promises.
func transfers() (rounds, count, size int) {
	if os.Getenv("FORMATION_SLOW") != "" && !raced {
		return 20, 4200, 64 << 10
	}
	return 1, 1200, 16 << 10
}

// Twenty transfers of more than 4,096 blocks of 64 KiB at default host memory:
// none incomplete.
func TestTransfersAreComplete(t *testing.T) {
	rounds, count, size := transfers()
	leaves := noiseLeaves(1, count, size)
	bs, cs := rawBlocks(t, leaves)
	server := newPeer(t)
	if err := server.blocks.PutMany(t.Context(), bs); err != nil {
		t.Fatal(err)
	}
	entry := server.source.put(leaves)
	for range rounds {
		t.Run("bitswap window", func(t *testing.T) { bitswapTransfer(t, server, cs, 128) })
		t.Run("bitswap at once", func(t *testing.T) { bitswapTransfer(t, server, cs, maxQueuedWants) })
		t.Run("bulk", func(t *testing.T) { bulkTransfer(t, server, entry, leaves) })
	}
}

func bitswapTransfer(t *testing.T, server *testPeer, cs []cid.Cid, window int) {
	client := newPeer(t)
	connectTo(t, client, server)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ses, err := client.Session(ctx, []peer.ID{server.host.ID()})
	if err != nil {
		t.Fatal(err)
	}
	start, got := time.Now(), 0
	for from := 0; from < len(cs); from += window {
		want := cs[from:min(from+window, len(cs))]
		in, err := ses.GetBlocks(ctx, want)
		if err != nil {
			t.Fatal(err)
		}
		stall := time.NewTimer(time.Minute)
		for n := range want {
			select {
			case _, ok := <-in:
				if !ok {
					t.Fatalf("session ended after %d of %d blocks", got+n, len(cs))
				}
				stall.Reset(time.Minute)
			case <-stall.C:
				t.Fatalf("stuck after %d of %d blocks", got+n, len(cs))
			}
		}
		got += len(want)
	}
	t.Logf("%d blocks in %v", got, time.Since(start).Round(time.Millisecond))
}

func bulkTransfer(t *testing.T, server *testPeer, entry cid.Cid, leaves [][]byte) {
	client := newPeer(t)
	connectTo(t, client, server)
	st, err := client.Bulk(t.Context(), server.host.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	start := time.Now()
	got := readAll(t, st, entry, leaves, 32)
	if got != len(leaves) {
		t.Fatalf("%d of %d leaves", got, len(leaves))
	}
	t.Logf("%d leaves in %v", got, time.Since(start).Round(time.Millisecond))
}

// readAll reads an entry in runs and checks every leaf.
func readAll(t testing.TB, st Stream, entry cid.Cid, leaves [][]byte, run int) (got int) {
	t.Helper()
	asked := 0
	err := st.Read(t.Context(), func(context.Context) (cid.Cid, int, int, bool) {
		if asked >= len(leaves) {
			return cid.Undef, 0, 0, false
		}
		first := asked
		asked = min(asked+run, len(leaves))
		return entry, first, asked - first, true
	}, func() []byte { return make([]byte, len(leaves[got])) }, func(data []byte) error {
		if !bytes.Equal(data, leaves[got]) {
			t.Errorf("leaf %d has other bytes", got)
		}
		got++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
