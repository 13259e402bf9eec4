package store

import (
	"context"
	"errors"

	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Fetcher is what the store needs of the network. p2p/exchange implements it.
// Nothing it returns is trusted. One that also has Broke(peer.ID, error) is told
// of peers that gave other bytes than they were asked for.
type Fetcher interface {
	// Providers lists peers that may hold c, best first. It may take seconds;
	// an empty list is no error.
	Providers(ctx context.Context, c cid.Cid) ([]peer.ID, error)
	// Provide announces that this node holds c.
	Provide(ctx context.Context, c cid.Cid) error
	// Session is a bitswap session that starts with the peers in from. It ends
	// with ctx.
	Session(ctx context.Context, from []peer.ID) (exchange.Fetcher, error)
	// Bulk opens a bulk stream to one peer. An error means the peer is away or
	// does not speak the protocol.
	Bulk(ctx context.Context, from peer.ID) (Bulk, error)
}

// Bulk is one open bulk stream. Its methods are called one at a time, except
// Close. It is an alias of an interface literal so that p2p/exchange meets it
// without importing this package.
//
//   - Describe asks for everything of root but leaves: the root node, its
//     signature, the base's node and signature, then interior nodes in the order
//     the receiver can predict. recv gets one block at a time and says whether it
//     was the last; an error of recv ends the stream. After the last block comes
//     what Have would say of the entries in the order of Describe.
//   - Have asks which leaves of each entry the peer has: one bitmap an entry
//     (bit i of byte i/8, least significant first, is leaf i; a nil bitmap is an
//     entry the peer does not know), and which other peers asked for the first of
//     them lately.
//   - Read pipelines runs of leaves. next is called from another goroutine, gives
//     the next run and may block until its ctx ends; ok == false ends the asking.
//     room gives a buffer of exactly the size the next leaf must have; recv gets
//     that buffer filled, or nil when the peer does not have the leaf, in the order
//     asked. Read returns after the last answer, or with an error if no answer came
//     in the stall time.
type Bulk = interface {
	Describe(ctx context.Context, root cid.Cid, recv func(data []byte) (last bool, err error)) (bitmaps [][]byte, others []peer.ID, err error)
	Have(ctx context.Context, entries []cid.Cid) (bitmaps [][]byte, others []peer.ID, err error)
	Read(ctx context.Context, next func(ctx context.Context) (entry cid.Cid, first, count int, ok bool), room func() []byte, recv func(data []byte) error) error
	Close() error
}

// blame tells the network of a peer that gave what no honest one does.
func (j *job) blame(p peer.ID, err error) {
	if !errors.Is(err, errOther) {
		return
	}
	j.s.log.Warn("a peer gave other bytes than it was asked for", "peer", p, "pack", j.root, "err", err)
	if f, ok := j.fetcher.(interface{ Broke(p peer.ID, err error) }); ok {
		f.Broke(p, err)
	}
}
