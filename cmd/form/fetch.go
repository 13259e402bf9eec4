package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/store"
)

// The swarm is where the store fetches from.
var _ store.Fetcher = (*p2p.Node)(nil)

// fetch brings a pack or base from the swarm into s: from the nodes that say
// they hold it, and whoever else the entry peer leads to.
func (a *app) fetch(ctx context.Context, c *swarm.Conn, s *store.Store, id cid.Cid) error {
	task := a.p.Start("fetching " + shortCID(id.String()))
	defer task.Done()
	node, entry, err := c.Peer(ctx)
	if err != nil {
		return err
	}
	s.SetFetcher(node)
	from := []peer.ID{entry}
	holders, err := c.API().Holders(ctx, id.String())
	if err != nil {
		return fmt.Errorf("who holds %s: %w", id, err)
	}
	for _, k := range holders.Nodes {
		p := peer.ID(k.PeerID())
		if p == entry {
			continue
		}
		if len(from) == maxSources {
			break
		}
		if err := c.Reach(ctx, k); err != nil {
			var u *swarm.UnreachableError
			if !errors.As(err, &u) {
				return err
			}
			continue // a holder that is away; others may be there
		}
		from = append(from, p)
	}
	err = s.Fetch(ctx, id, store.FetchOptions{From: from, Progress: func(p store.Progress) { task.Progress(p.Done, p.Total) }})
	if err != nil {
		return fmt.Errorf("fetch %s: %w", id, err)
	}
	return nil
}

// maxSources is how many holders are asked at once.
const maxSources = 4
