package exchange

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"
)

// Stream is an open bulk stream; see Bulk for what its methods promise. It is
// an alias of an interface literal so that consumers can declare the same one.
type Stream = interface {
	Describe(ctx context.Context, root cid.Cid, recv func(data []byte) (last bool, err error)) (bitmaps [][]byte, others []peer.ID, err error)
	Have(ctx context.Context, entries []cid.Cid) (bitmaps [][]byte, others []peer.ID, err error)
	Read(ctx context.Context, next func(ctx context.Context) (entry cid.Cid, first, count int, ok bool), room func() []byte, recv func(data []byte) error) error
	Close() error
}

// Bulk opens a bulk stream to a peer, dialling it if need be. The methods of the
// result are called one at a time, and any error, an ended ctx too, leaves it
// fit only for Close.
//
// Describe hands over the blocks of a DAG that are not leaves, one at a time, in
// the server's order, and then what Have would answer for its entries in the order
// of the DAG: one round trip less. Have answers one bitmap an entry (nil: unknown there) and
// peers that asked the same lately. Read pipelines runs of leaves: next is called
// from a goroutine of Read and may block until its ctx ends; room gives a buffer
// of exactly the size the next leaf must have, which recv gets back filled, or
// nil when the peer does not have that leaf, in the order asked.
func (e *Exchange) Bulk(ctx context.Context, from peer.ID) (Stream, error) {
	if !e.Running() {
		return nil, ErrNotRunning
	}
	if err := e.connect(ctx, from); err != nil {
		return nil, fmt.Errorf("bulk: connect %s: %w", from, err)
	}
	s, err := e.cfg.Host.NewStream(ctx, from, BulkProtocol(e.cfg.Network))
	if err != nil {
		return nil, fmt.Errorf("bulk: stream to %s: %w", from, err)
	}
	return &stream{e: e, s: s, r: stallReader{s: s, stall: e.cfg.Stall}}, nil
}

type stream struct {
	e *Exchange
	s network.Stream
	r stallReader
}

func (st *stream) Close() error { return st.s.Reset() }

// judge tells of the peer when err is that it broke the protocol.
func (st *stream) judge(err error) error {
	if errors.Is(err, ErrProtocol) {
		st.e.cfg.Broke(st.s.Conn().RemotePeer(), err)
	}
	return err
}

// watch resets the stream when ctx ends, so that no read or write outlives it.
func (st *stream) watch(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = st.s.Reset() }) // a reset stream has nothing left to fail
}

func (st *stream) ask(op byte, payload []byte) error {
	_, err := st.s.Write(appendRequest(nil, op, payload))
	return err
}

// Describe implements Stream.
func (st *stream) Describe(ctx context.Context, root cid.Cid, recv func([]byte) (bool, error)) (bitmaps [][]byte, others []peer.ID, err error) {
	defer st.watch(ctx)()
	defer func() { err = st.judge(err) }()
	if err := st.ask(opDescribe, appendCID(nil, root)); err != nil {
		return nil, nil, fmt.Errorf("describe: %w", err)
	}
	var buf []byte
	for range maxNodes {
		n, err := st.r.size()
		if err != nil {
			return nil, nil, fmt.Errorf("describe: %w", err)
		}
		if n == 0 { // that is all it has
			return nil, nil, nil
		}
		if n > maxFrame {
			return nil, nil, fmt.Errorf("%w: frame of %d bytes", ErrProtocol, n)
		}
		if uint32(cap(buf)) < n {
			buf = make([]byte, n)
		}
		if err := st.r.full(buf[:n]); err != nil {
			return nil, nil, fmt.Errorf("describe: %w", err)
		}
		last, err := recv(buf[:n])
		if err != nil {
			return nil, nil, err
		}
		if last {
			return st.end()
		}
	}
	return nil, nil, fmt.Errorf("%w: endless answer", ErrProtocol)
}

// end reads what follows the last block: an empty frame, and what the server has
// of the leaves.
func (st *stream) end() ([][]byte, []peer.ID, error) {
	n, err := st.r.size()
	if err != nil {
		return nil, nil, fmt.Errorf("describe: %w", err)
	}
	if n != 0 {
		return nil, nil, fmt.Errorf("%w: block too many", ErrProtocol)
	}
	return st.haveAnswer(maxEntries)
}

// Have implements Stream.
func (st *stream) Have(ctx context.Context, entries []cid.Cid) (bitmaps [][]byte, others []peer.ID, err error) {
	if len(entries) == 0 || len(entries) > maxEntries {
		return nil, nil, fmt.Errorf("have: %d entries, at most %d", len(entries), maxEntries)
	}
	defer st.watch(ctx)()
	if err := st.ask(opHave, encodeEntries(entries)); err != nil {
		return nil, nil, fmt.Errorf("have: %w", err)
	}
	bitmaps, others, err = st.haveAnswer(len(entries))
	return bitmaps, others, st.judge(err)
}

func (st *stream) haveAnswer(entries int) ([][]byte, []peer.ID, error) {
	n, err := st.r.size()
	if err != nil {
		return nil, nil, fmt.Errorf("have: %w", err)
	}
	if n > maxHave {
		return nil, nil, fmt.Errorf("%w: have answer of %d bytes", ErrProtocol, n)
	}
	raw := make([]byte, n)
	if err := st.r.full(raw); err != nil {
		return nil, nil, fmt.Errorf("have: %w", err)
	}
	bitmaps, infos, err := decodeHave(raw, entries)
	if err != nil {
		return nil, nil, err
	}
	var others []peer.ID
	for _, o := range infos {
		if o.ID == st.e.cfg.Host.ID() {
			continue
		}
		st.e.learn(o)
		others = append(others, o.ID)
	}
	return bitmaps, others, nil
}

// Read implements Stream.
func (st *stream) Read(ctx context.Context, next func(context.Context) (cid.Cid, int, int, bool), room func() []byte, recv func([]byte) error) error {
	group, ctx := errgroup.WithContext(ctx)
	defer st.watch(ctx)()
	pending := make(chan int, maxPending)
	group.Go(func() error {
		defer close(pending)
		for {
			entry, first, count, ok := next(ctx)
			if !ok {
				return nil
			}
			if count < 1 || count > maxRun {
				return fmt.Errorf("read: run of %d leaves, at most %d", count, maxRun)
			}
			// Counted before it is asked, so the reader expects no less than
			// the server may send.
			select {
			case pending <- count:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := st.ask(opRead, encodeRead(entry, first, count)); err != nil {
				return fmt.Errorf("read: %w", err)
			}
		}
	})
	group.Go(func() error {
		for count := range pending {
			for range count {
				if err := st.leaf(room, recv); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return st.judge(group.Wait())
}

func (st *stream) leaf(room func() []byte, recv func([]byte) error) error {
	n, err := st.r.size()
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	buf := room()
	if n == 0 {
		return recv(nil)
	}
	if int(n) != len(buf) {
		return fmt.Errorf("%w: leaf of %d bytes where %d were declared", ErrProtocol, n, len(buf))
	}
	if err := st.r.full(buf); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return recv(buf)
}
