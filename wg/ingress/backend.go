package ingress

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// key is a port of a replica.
type key struct {
	replica, network string
	port             int
}

// backend is a port of a replica, how it does, and what runs through it.
type backend struct {
	key
	name   string // its host in the URLs of a transport, never used again
	dialer Dialer

	mu      sync.Mutex
	conns   map[*conn]struct{}
	using   int       // requests and connections under way
	fails   int       // in a row
	out     time.Time // not before; zero: it is well
	unfit   bool      // gone, or not listed any more
	closing bool      // everything through it is cut, or will not begin
	timer   *time.Timer
	drained func()
}

func newBackend(k key, name string, d Dialer) *backend {
	return &backend{key: k, name: name, dialer: d, conns: map[*conn]struct{}{}}
}

// errCut: the replica is gone, or was given its time.
var errCut = errors.New("the replica is gone")

// dialError says that nothing was sent to a replica.
type dialError struct{ err error }

func (e *dialError) Error() string { return "open a connection to the replica: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dialTimeout bounds an attempt to reach a replica.
const dialTimeout = 10 * time.Second

// dial opens a connection that ends with the backend. Errors are dialErrors.
func (b *backend) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := b.dialer.Dial(ctx, b.replica, b.network, b.port)
	if err != nil {
		return nil, &dialError{err}
	}
	c := &conn{Conn: raw, of: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return nil, &dialError{errors.Join(errCut, raw.Close())}
	}
	b.conns[c] = struct{}{}
	return c, nil
}

// conn is a connection to a replica; its backend can end it.
type conn struct {
	net.Conn
	of *backend
}

// Close closes it for its user.
func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite passes a half-close on, where there is such a thing.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// begin takes note of a use, which end ends.
func (b *backend) begin() {
	b.mu.Lock()
	b.using++
	b.mu.Unlock()
}

func (b *backend) end() {
	b.mu.Lock()
	b.using--
	idle := b.unfit && b.using == 0
	b.mu.Unlock()
	if idle {
		b.cut()
	}
}

// drain gives what runs through the backend a time to end; done is called then.
func (b *backend) drain(within time.Duration, done func()) {
	b.mu.Lock()
	b.unfit, b.drained = true, done
	if b.timer == nil {
		b.timer = time.AfterFunc(within, b.cut)
	}
	idle := b.using == 0
	b.mu.Unlock()
	if idle {
		go b.cut() // the caller may hold what done needs
	}
}

// cut ends everything through the backend.
func (b *backend) cut() {
	b.mu.Lock()
	b.unfit, b.closing = true, true
	if b.timer != nil {
		b.timer.Stop()
	}
	all, done := b.conns, b.drained
	b.conns, b.drained = map[*conn]struct{}{}, nil
	b.mu.Unlock()
	for c := range all {
		// Whoever uses it hears of it.
		_ = c.Conn.Close()
	}
	if done != nil {
		done()
	}
}

// Pauses of a replica that fails.
const (
	firstPause = time.Second
	longPause  = 30 * time.Second
)

// failed leaves the replica out for a while.
func (b *backend) failed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	pause := min(firstPause<<min(b.fails, 6), longPause)
	b.fails++
	b.out = time.Now().Add(pause)
}

// works takes it in again.
func (b *backend) works() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails, b.out = 0, time.Time{}
}

// due says whether a replica that is left out should be asked again.
func (b *backend) due(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.unfit && !b.out.IsZero() && now.After(b.out)
}

// load is what the choice between replicas goes by.
func (b *backend) load() (using int, out, unfit bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.using, !b.out.IsZero(), b.unfit
}

// service is the backends of one Service.
type service struct{ backends []*backend }

// pick chooses a backend that was not tried: one that is well before one that is
// left out, then the one that has the least to do; nil: there is none.
func (s *service) pick(tried map[*backend]bool) *backend {
	var best *backend
	var bestUsing, same int
	var bestOut bool
	for _, b := range s.backends {
		using, out, unfit := b.load()
		if tried[b] || unfit {
			continue
		}
		switch {
		case best == nil, bestOut && !out, bestOut == out && using < bestUsing:
			best, bestUsing, bestOut, same = b, using, out, 1
		case bestOut == out && using == bestUsing:
			// One of those that are equal, each as often.
			if same++; rand.IntN(same) == 0 {
				best = b
			}
		}
	}
	return best
}

// attempts is on how many replicas something is tried.
const attempts = 3

// connect opens a connection to one of the replicas. What it returns is in use
// until release is called.
func (s *service) connect(ctx context.Context) (c net.Conn, release func(), err error) {
	err = errNone
	tried := map[*backend]bool{}
	for range attempts {
		b := s.pick(tried)
		if b == nil {
			break
		}
		tried[b] = true
		b.begin()
		if c, err = b.dial(ctx); err == nil {
			b.works()
			return c, b.end, nil
		}
		b.end()
		if ctx.Err() != nil {
			break
		}
		b.failed()
	}
	return nil, nil, err
}

var errNone = errors.New("no replica is there")

// probeInterval is how often replicas that are left out are looked at.
const probeInterval = 250 * time.Millisecond

// probe asks replicas that have failed whether they accept connections again.
func (g *Ingress) probe(ctx context.Context) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, 16)
	asking := sync.Map{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, b := range g.all() {
			if !b.due(time.Now()) {
				continue
			}
			if _, busy := asking.LoadOrStore(b, true); busy {
				continue
			}
			running.Go(func() {
				defer asking.Delete(b)
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return
				}
				defer func() { <-slots }()
				b.ask(ctx)
			})
		}
	}
}

func (g *Ingress) all() []*backend {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]*backend, 0, len(g.backends))
	for _, b := range g.backends {
		out = append(out, b)
	}
	return out
}

// ask opens a connection to see whether that works.
func (b *backend) ask(ctx context.Context) {
	c, err := b.dial(ctx)
	switch {
	case err == nil:
		b.works()
		// It was there for this alone.
		_ = c.Close()
	case ctx.Err() == nil:
		b.failed()
	}
}
