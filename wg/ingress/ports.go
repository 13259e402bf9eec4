package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// portRetry is how long a port that could not be opened is left alone.
const portRetry = 5 * time.Second

// openPort is a plain port that is served.
type openPort struct {
	close func()
	ended chan struct{}
}

// keepPorts opens and closes plain ports as they are wanted, until ctx ends; what
// came in by them lives as long as base. It returns when all of it has ended.
func (g *Ingress) keepPorts(ctx, base context.Context) {
	open := map[Port]*openPort{}
	said := map[Port]bool{}
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		var again <-chan time.Time
		want := g.wantedPorts()
		for p, o := range open {
			if !want[p] {
				o.close()
				<-o.ended // before another may have it
				delete(open, p)
			}
		}
		for p := range want {
			if open[p] != nil {
				continue
			}
			o, err := g.openPort(base, p, &serving)
			if err != nil {
				if !said[p] {
					g.log.Warn("a public port is not served", "port", p.Number, "network", p.Network, "err", err)
				}
				said[p] = true
				again = time.After(portRetry)
				continue
			}
			delete(said, p)
			open[p] = o
		}
		g.stats.ports.Store(int64(len(open)))
		select {
		case <-ctx.Done():
			for _, o := range open {
				o.close()
			}
			return
		case <-g.wake:
		case <-again:
		}
	}
}

func (g *Ingress) wantedPorts() map[Port]bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make(map[Port]bool, len(g.ports))
	for p := range g.ports {
		out[p] = true
	}
	return out
}

func (g *Ingress) openPort(base context.Context, p Port, serving *sync.WaitGroup) (*openPort, error) {
	address := net.JoinHostPort(g.cfg.Host, strconv.Itoa(p.Number))
	o := &openPort{ended: make(chan struct{})}
	if p.Network == "udp" {
		pc, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, err
		}
		flows := g.newFlows(pc, p)
		// Answers go out by the socket that is closed, so flows end with it.
		o.close = func() { _ = pc.Close() }
		serving.Go(func() {
			defer close(o.ended)
			flows.serve(base)
		})
		return o, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	guarded := g.guard.listener(l, kindTCP, g.stats)
	o.close = func() { _ = l.Close() }
	serving.Go(func() {
		defer close(o.ended)
		g.acceptAll(base, guarded, p, serving)
	})
	return o, nil
}

// acceptAll serves what comes by a port until its listener is closed.
func (g *Ingress) acceptAll(base context.Context, l net.Listener, p Port, serving *sync.WaitGroup) {
	var pause time.Duration
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
				continue
			case <-base.Done():
				return
			}
		}
		pause = 0
		serving.Go(func() { g.serveConn(base, c, p) })
	}
}

// serveConn carries one TCP connection to a replica.
func (g *Ingress) serveConn(base context.Context, client net.Conn, p Port) {
	defer client.Close()
	s := g.port(p)
	if s == nil {
		return
	}
	replica, release, err := s.connect(base)
	if err != nil {
		if base.Err() == nil {
			g.stats.fail(kindTCP)
		}
		g.log.Debug("connection failed", "port", p.Number, "err", err)
		return
	}
	defer release()
	defer replica.Close()
	stop := context.AfterFunc(base, func() {
		_ = client.Close()
		_ = replica.Close()
	})
	defer stop()
	splice(client, replica, g.cfg.Limits.Silence, g.cfg.Limits.Stall)
}

// splice carries bytes both ways until both directions have ended, one is broken,
// nothing has moved for silence, or one side takes nothing for stall. The end of
// one direction is passed on as a half-close.
func splice(a, b net.Conn, silence, stall time.Duration) {
	var last atomic.Int64 // unix nanoseconds
	last.Store(time.Now().UnixNano())
	ends := func() time.Time { return time.Unix(0, last.Load()).Add(silence) }
	move := func(to, from net.Conn) error {
		buf := make([]byte, 32<<10)
		for {
			if err := from.SetReadDeadline(ends()); err != nil {
				return err
			}
			n, err := from.Read(buf)
			if n > 0 {
				last.Store(time.Now().UnixNano())
				if err := to.SetWriteDeadline(time.Now().Add(stall)); err != nil {
					return err
				}
				if _, err := to.Write(buf[:n]); err != nil {
					return err
				}
			}
			var timeout net.Error
			switch {
			case err == nil, errors.As(err, &timeout) && timeout.Timeout() && time.Now().Before(ends()):
			case errors.Is(err, io.EOF):
				return closeWrite(to)
			default:
				return err
			}
		}
	}
	var both sync.WaitGroup
	carry := func(to, from net.Conn) {
		if move(to, from) != nil {
			// A broken direction leaves nothing to wait for in the other.
			_ = a.Close()
			_ = b.Close()
		}
	}
	both.Go(func() { carry(a, b) })
	both.Go(func() { carry(b, a) })
	both.Wait()
}

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}
