package exchange

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Source is where the bulk server's answers come from.
type Source interface {
	// Describe sends the root's block, its signature, and so on down to the last
	// interior node; what is missing ends the list early. Data passed to send is
	// not kept. It returns the DAG's entries in order, nil if the list ended early.
	Describe(ctx context.Context, root cid.Cid, send func(data []byte) error) (entries []cid.Cid, err error)
	// Have gives the bitmap of the leaves of an entry; nil if it is not known.
	Have(ctx context.Context, entry cid.Cid) ([]byte, error)
	// Leaves sends count leaves of an entry from the first on, each once and in
	// order; nil stands for one that is not here.
	Leaves(ctx context.Context, entry cid.Cid, first, count int, send func(data []byte) error) error
}

// serve answers the requests of one stream until the peer closes it.
func (e *Exchange) serve(ctx context.Context, s network.Stream) {
	from := s.Conn().RemotePeer()
	place := e.streams.enter(from, func() { _ = s.Reset() })
	if place == nil {
		e.cfg.Full(from, errFull)
		_ = s.ResetWithError(network.StreamResourceLimitExceeded) // nobody is left to tell
		return
	}
	defer e.streams.leave(place)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()

	err := e.answer(ctx, s, from)
	switch {
	case err == nil:
		err = s.Close()
	default:
		_ = s.Reset() // after an error the stream has no more use
	}
	if errors.Is(err, ErrProtocol) {
		e.cfg.Broke(from, err)
	}
	if err != nil && ctx.Err() == nil {
		e.log.Debug("bulk stream ended", "peer", from, "err", err)
	}
}

func (e *Exchange) answer(ctx context.Context, s network.Stream, from peer.ID) error {
	out := &frames{w: bufio.NewWriterSize(s, 64<<10), s: s}
	in := bufio.NewReaderSize(s, 4<<10)
	buf := make([]byte, 0, 512)
	for {
		if in.Buffered() == 0 { // more requests may be waiting: answer in fewer writes
			if err := out.flush(); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		if err := s.SetReadDeadline(time.Now().Add(idleTime)); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		op, payload, err := readRequest(in, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("request: %w", err)
		}
		switch op {
		case opDescribe:
			err = e.answerDescribe(ctx, payload, from, out)
		case opHave:
			err = e.answerHave(ctx, payload, from, out)
		case opRead:
			err = e.answerRead(ctx, payload, out)
		default:
			err = fmt.Errorf("%w: op %d", ErrProtocol, op)
		}
		if err != nil {
			return err
		}
	}
}

func (e *Exchange) answerDescribe(ctx context.Context, payload []byte, from peer.ID, out *frames) error {
	root, rest, err := cutCID(payload)
	if err != nil || len(rest) != 0 {
		return errors.Join(ErrProtocol, err)
	}
	entries, err := e.cfg.Source.Describe(ctx, root, out.send)
	if err != nil {
		return fmt.Errorf("describe %s: %w", root, err)
	}
	if err := out.send(nil); err != nil || entries == nil {
		return err
	}
	return e.sendHave(ctx, entries[:min(len(entries), maxEntries)], from, out)
}

func (e *Exchange) answerHave(ctx context.Context, payload []byte, from peer.ID, out *frames) error {
	entries, err := decodeEntries(payload)
	if err != nil {
		return err
	}
	return e.sendHave(ctx, entries, from, out)
}

func (e *Exchange) sendHave(ctx context.Context, entries []cid.Cid, from peer.ID, out *frames) (err error) {
	now := time.Now()
	bitmaps := make([][]byte, len(entries))
	size := 0
	known := false
	for i, c := range entries {
		if bitmaps[i], err = e.cfg.Source.Have(ctx, c); err != nil {
			return fmt.Errorf("have %s: %w", c, err)
		}
		if size += len(bitmaps[i]); size > maxHave/2 {
			return fmt.Errorf("have: bitmaps of more than %d bytes", maxHave/2)
		}
		known = known || bitmaps[i] != nil
	}
	var others []peer.AddrInfo
	for _, p := range e.recent.ask(entries, from, now, known) {
		others = append(others, peer.AddrInfo{ID: p, Addrs: e.cfg.Host.Peerstore().Addrs(p)})
	}
	return out.send(encodeHave(bitmaps, others))
}

func (e *Exchange) answerRead(ctx context.Context, payload []byte, out *frames) error {
	entry, first, count, err := decodeRead(payload)
	if err != nil {
		return err
	}
	sent := 0
	err = e.cfg.Source.Leaves(ctx, entry, first, count, func(data []byte) error {
		if data != nil {
			e.sent.Add(uint64(len(data)))
			e.leaves.Add(1)
		}
		sent++
		return out.send(data)
	})
	if err != nil {
		return fmt.Errorf("leaves of %s: %w", entry, err)
	}
	if sent != count {
		return fmt.Errorf("leaves of %s: source gave %d of %d", entry, sent, count)
	}
	return nil
}

// frames writes length-prefixed frames. A client that takes nothing for
// writeTime is dropped.
type frames struct {
	w     *bufio.Writer
	s     network.Stream
	until time.Time // the stream's deadline
}

// allow moves the deadline, when it is worth a timer.
func (f *frames) allow() error {
	now := time.Now()
	if f.until.Sub(now) > writeTime*7/8 {
		return nil
	}
	f.until = now.Add(writeTime)
	if err := f.s.SetWriteDeadline(f.until); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return nil
}

func (f *frames) send(data []byte) error {
	if len(data) > maxHave {
		return fmt.Errorf("frame of %d bytes", len(data))
	}
	if err := f.allow(); err != nil {
		return err
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(data)))
	if _, err := f.w.Write(head[:]); err != nil {
		return err
	}
	_, err := f.w.Write(data)
	return err
}

func (f *frames) flush() error {
	if err := f.allow(); err != nil {
		return err
	}
	return f.w.Flush()
}
