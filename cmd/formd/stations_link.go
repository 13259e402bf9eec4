package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/guest"
)

// Between two tries to reach a guest's shim, and between two rounds of news.
const (
	linkRetry = time.Second
	newsPace  = time.Second
)

// run keeps the guest connected until ctx ends.
func (l *guestLink) run(ctx context.Context) {
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		l.again(ctx, "port", func() error {
			port, err := l.s.vms.Mesh(ctx, l.id)
			if err != nil {
				return err
			}
			return l.carry(ctx, port)
		})
	})
	both.Go(func() {
		l.again(ctx, "news", func() error {
			stream, err := l.s.vms.MeshNews(ctx, l.id)
			if err != nil {
				return err
			}
			return l.tellAll(ctx, stream)
		})
	})
}

// again does what ends by itself until ctx does.
func (l *guestLink) again(ctx context.Context, what string, do func() error) {
	for ctx.Err() == nil {
		err := do()
		if ctx.Err() == nil {
			l.s.log.Debug("mesh: a guest is out of reach", "vm", l.id, "what", what, "err", err)
		}
		wait(ctx, linkRetry)
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// carry moves datagrams both ways until the port or ctx ends. It closes port.
func (l *guestLink) carry(ctx context.Context, port *fogvm.MeshPort) error {
	ctx, cancel := context.WithCancel(ctx)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { port.Close() })
	defer stop()
	writing.Go(func() {
		defer port.Close()
		for err := port.Locate(l.locations()); err == nil; {
			select {
			case <-ctx.Done():
				return
			case <-l.located:
				err = port.Locate(l.locations())
			case in := <-l.out:
				err = port.Send(in.b, in.from)
			}
		}
	})
	for {
		b, to, err := port.Receive()
		if err != nil {
			return err
		}
		l.s.send(l.id, b, to)
	}
}

// tellAll tells the guest all statements there are, and what changes of them, until
// the stream or ctx ends. It closes stream.
func (l *guestLink) tellAll(ctx context.Context, stream net.Conn) error {
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	defer stream.Close()
	var teller guest.Teller
	for problem := ""; ; {
		report, err := teller.Round(stream, l.held())
		if err != nil {
			return err
		}
		if report.Problem != problem {
			// The guest's word. A statement of this node's that a guest refuses is one
			// that the guest knows better of.
			problem = report.Problem
			l.s.log.Info("mesh: a guest refuses a statement", "vm", l.id, "refused", report.Refused, "reason", problem)
		}
		wait(ctx, newsPace)
		select {
		case <-l.news:
		case <-ctx.Done():
			return nil
		}
	}
}
