package p2p

import (
	"context"

	"github.com/formthefog/formation/p2p/exchange"
	bitswap "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// The block exchange of package exchange, on admitted connections only. Each
// method returns ErrNoBlocks on a node that was configured without Blocks.

// Providers lists peers that may hold c, found in the DHT.
func (n *Node) Providers(ctx context.Context, c cid.Cid) ([]peer.ID, error) {
	if n.blocks == nil {
		return nil, ErrNoBlocks
	}
	return n.blocks.Providers(ctx, c)
}

// Provide announces in the DHT that this node holds c.
func (n *Node) Provide(ctx context.Context, c cid.Cid) error {
	if n.blocks == nil {
		return ErrNoBlocks
	}
	return n.blocks.Provide(ctx, c)
}

// Session is a bitswap session that starts with the peers in from, and ends
// with ctx.
func (n *Node) Session(ctx context.Context, from []peer.ID) (bitswap.Fetcher, error) {
	if n.blocks == nil {
		return nil, ErrNoBlocks
	}
	return n.blocks.Session(ctx, from)
}

// Bulk opens a bulk stream to one peer.
func (n *Node) Bulk(ctx context.Context, from peer.ID) (exchange.Stream, error) {
	if n.blocks == nil {
		return nil, ErrNoBlocks
	}
	return n.blocks.Bulk(ctx, from)
}
