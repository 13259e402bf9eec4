package fogvm

import (
	"context"
	"net"
	"sync"
	"time"
)

// resolver answers the guest's DNS questions with the host's means, a bounded
// number at once and each for a bounded time. Its methods are what the DNS
// server asks for.
type resolver struct {
	host  *net.Resolver
	ctx   context.Context // ends every question
	slots chan struct{}
}

const (
	maxQuestions = 64 // at once
	questionTime = 10 * time.Second
)

func newResolver(ctx context.Context) *resolver {
	return &resolver{host: &net.Resolver{}, ctx: ctx, slots: make(chan struct{}, maxQuestions)}
}

func ask[T any](r *resolver, look func(context.Context) (T, error)) (T, error) {
	r.slots <- struct{}{}
	defer func() { <-r.slots }()
	ctx, cancel := context.WithTimeout(r.ctx, questionTime)
	defer cancel()
	return look(ctx)
}

func (r *resolver) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	return ask(r, func(ctx context.Context) ([]net.IPAddr, error) { return r.host.LookupIPAddr(ctx, name) })
}

func (r *resolver) LookupCNAME(_ context.Context, name string) (string, error) {
	return ask(r, func(ctx context.Context) (string, error) { return r.host.LookupCNAME(ctx, name) })
}

func (r *resolver) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	return ask(r, func(ctx context.Context) ([]*net.MX, error) { return r.host.LookupMX(ctx, name) })
}

func (r *resolver) LookupNS(_ context.Context, name string) ([]*net.NS, error) {
	return ask(r, func(ctx context.Context) ([]*net.NS, error) { return r.host.LookupNS(ctx, name) })
}

func (r *resolver) LookupTXT(_ context.Context, name string) ([]string, error) {
	return ask(r, func(ctx context.Context) ([]string, error) { return r.host.LookupTXT(ctx, name) })
}

func (r *resolver) LookupSRV(_ context.Context, service, proto, name string) (cname string, records []*net.SRV, err error) {
	records, err = ask(r, func(ctx context.Context) (list []*net.SRV, err error) {
		cname, list, err = r.host.LookupSRV(ctx, service, proto, name)
		return list, err
	})
	return cname, records, err
}

// questions is the socket they come in on. Each that is read becomes a
// goroutine, so none is read while as many are being answered as may be; the
// socket's buffer holds some, and the guest asks again.
type questions struct {
	net.PacketConn
	r *resolver
}

func (q questions) ReadFrom(p []byte) (int, net.Addr, error) {
	q.r.slots <- struct{}{}
	<-q.r.slots
	return q.PacketConn.ReadFrom(p)
}

// boundedListener accepts no more connections than it has slots.
type boundedListener struct {
	net.Listener
	slots chan struct{}
}

func (l boundedListener) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	release func()
}

func (c *slotConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
