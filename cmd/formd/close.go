package main

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/store"
)

func (d *formd) addServer(s *http.Server, l net.Listener) {
	d.servers = append(d.servers, server{l: l, serve: func(ctx context.Context) error { return serveHTTP(ctx, s, l) }})
}

// close releases what open took, in reverse. After serve the parts that run have
// closed themselves.
func (d *formd) close() error {
	var errs []error
	if !d.ready {
		for _, s := range d.servers {
			errs = append(errs, s.l.Close())
		}
		if d.mesh.host != nil {
			d.mesh.host.close()
		}
		if d.node != nil {
			// A node that never ran is released by running it with an ended context.
			ended, end := context.WithCancel(context.Background())
			end()
			errs = append(errs, d.node.Run(ended))
		}
		if d.state != nil {
			errs = append(errs, d.state.Close())
		}
	}
	errs = append(errs, d.sites.close())
	if d.mesh.socket != nil {
		errs = append(errs, d.mesh.socket.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// fetcher gives the node's exchange the type the store declares.
type fetcher struct{ node *p2p.Node }

func (f fetcher) Providers(ctx context.Context, c cid.Cid) ([]peer.ID, error) {
	return f.node.Providers(ctx, c)
}

func (f fetcher) Provide(ctx context.Context, c cid.Cid) error { return f.node.Provide(ctx, c) }

func (f fetcher) Session(ctx context.Context, from []peer.ID) (exchange.Fetcher, error) {
	return f.node.Session(ctx, from)
}

func (f fetcher) Bulk(ctx context.Context, from peer.ID) (store.Bulk, error) {
	return f.node.Bulk(ctx, from)
}

// Broke tells of a peer that gave other blocks than it was asked for.
func (f fetcher) Broke(p peer.ID, err error) { f.node.Broke(p, p2p.Blocks, err) }
