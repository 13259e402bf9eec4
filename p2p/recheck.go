package p2p

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

// Recheck is to be called when this machine has slept: peers may have given up its
// connections, or the network another address, and nothing tells. It returns at
// once. Connections that do not answer a ping within seconds are closed, and all
// peers that are not connected are redialled at once, however often that failed.
func (n *Node) Recheck() {
	n.redial.with(func(b *book, now time.Time) { b.hurry(now) })
	for _, c := range n.inner.Network().Conns() {
		n.tasks.run(func() { n.recheck(c) })
	}
}

func (n *Node) recheck(c network.Conn) {
	ctx, cancel := context.WithTimeout(n.ctx, n.tune.answer)
	defer cancel()
	_, err := answers(ctx, c, 1)
	if err == nil || n.ctx.Err() != nil {
		return
	}
	n.log.Info("connection is dead", "peer", c.RemotePeer(), "err", err)
	_ = c.Close() // it is gone either way
	n.redial.with(func(b *book, now time.Time) { b.hurry(now) })
}

// answers pings the other side of a connection n times, and says how long the fastest
// answer took.
func answers(ctx context.Context, c network.Conn, n int) (least time.Duration, err error) {
	s, err := openOn(ctx, c, ping.ID)
	if err != nil {
		return 0, err
	}
	defer s.Reset() // nothing more is expected of it
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	for i := range n {
		var sent, got [ping.PingSize]byte
		_, _ = rand.Read(sent[:]) // it never fails
		began := time.Now()
		if _, err := s.Write(sent[:]); err != nil {
			return 0, fmt.Errorf("ping: %w", err)
		}
		if _, err := io.ReadFull(s, got[:]); err != nil {
			return 0, fmt.Errorf("ping: %w", err)
		}
		if !bytes.Equal(sent[:], got[:]) {
			return 0, errors.New("ping: another answer")
		}
		if took := time.Since(began); i == 0 || took < least {
			least = took
		}
	}
	return least, nil
}
