package carrier

import (
	"context"
	"io"
	"net/netip"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Accept serves a stream that a host, who is a member, has opened. It returns
// when the stream has ended.
func (c *Carrier) Accept(id peer.ID, stream io.ReadWriteCloser) {
	at := Address(id)
	c.mu.Lock()
	ctx, h := c.ctx, c.hosts[at]
	if ctx == nil {
		c.mu.Unlock()
		stream.Close()
		return
	}
	if h == nil {
		h = c.begin(id, at)
	}
	if h == nil {
		c.mu.Unlock()
		stream.Close()
		return
	}
	c.tasks.Add(1)
	c.mu.Unlock()
	defer c.tasks.Done()
	c.serve(ctx, h, at, stream)
}

// serve runs a tunnel until it ends.
func (c *Carrier) serve(ctx context.Context, h *host, at netip.AddrPort, stream io.ReadWriteCloser) {
	t := newTunnel(stream)
	stop := context.AfterFunc(ctx, t.close)
	defer stop()
	h.attach(t, c.addresses())
	defer h.detach(t)
	var writing sync.WaitGroup
	writing.Go(func() {
		if err := t.write(); err != nil {
			t.close()
		}
	})
	err := t.read(func(g greeting) {
		h.hear(g, c.cfg.Seen(h.id), c.inner)
		c.nudge()
	}, func(b []byte) {
		h.touch(c.cfg.Now())
		if c.deliver(b, at) {
			c.inject(b, at)
		}
	})
	t.close()
	writing.Wait()
	c.cfg.Log.Debug("mesh: a stream has ended", "host", h.id, "err", err)
}

// open opens a stream and serves it.
func (c *Carrier) open(ctx context.Context, h *host, at netip.AddrPort) {
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	stream, err := c.cfg.Streams.OpenStream(opening, h.id)
	cancel()
	h.opened(c.cfg.Now(), err)
	if err != nil {
		c.cfg.Log.Debug("mesh: cannot open a stream", "host", h.id, "err", err)
		return
	}
	c.serve(ctx, h, at, stream)
}
