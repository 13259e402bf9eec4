package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Dialer reaches replicas. Dial opens a connection to a port of one; network is
// "tcp" or "udp". That for UDP carries datagrams as [WriteDatagram] writes them.
// Connections may support CloseWrite.
type Dialer interface {
	Dial(ctx context.Context, replica, network string, port int) (net.Conn, error)
}

// Replica is one place where a service runs.
type Replica struct {
	ID string
	// Gone: its machine is known to be dead. It is left out, and what waits for it
	// is cut.
	Gone bool
}

// Service is a port of some replicas that do the same.
type Service struct {
	Port     int
	Replicas []Replica
}

// Port is a plain port of this machine.
type Port struct {
	Network string // "tcp" or "udp"
	Number  int
}

// Desired is all that is to be served.
type Desired struct {
	Sites map[string]Service // HTTP, by host name in lower case
	Ports map[Port]Service
}

// Limits bound what clients can take. Zero fields mean the defaults.
type Limits struct {
	Conns, ConnsOfOne int           // client connections at once
	Requests          int           // HTTP requests at once
	Flows, FlowsOfOne int           // UDP clients at once; of one address
	Header            time.Duration // until a request's header is there
	Stall             time.Duration // until a client, or a replica, takes or gives the next bytes
	Answer            time.Duration // until a replica begins its answer
	Idle              time.Duration // between requests
	Silence           time.Duration // of a TCP connection, both ways
	FlowIdle          time.Duration
	Drain             time.Duration // for what runs through a replica that is not listed any more
	Grace             time.Duration // for what runs when Run ends
}

func (l *Limits) setDefaults() {
	number := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	span := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	number(&l.Conns, 4096)
	number(&l.ConnsOfOne, 256)
	number(&l.Requests, 4096)
	number(&l.Flows, 4096)
	number(&l.FlowsOfOne, 64)
	span(&l.Header, 10*time.Second)
	span(&l.Stall, time.Minute)
	span(&l.Answer, 2*time.Minute)
	span(&l.Idle, 2*time.Minute)
	span(&l.Silence, time.Hour)
	span(&l.FlowIdle, time.Minute)
	span(&l.Drain, 30*time.Second)
	span(&l.Grace, 5*time.Second)
}

// Config of an Ingress.
type Config struct {
	Dialer Dialer
	// HTTP and HTTPS are where sites are served; nil: not. Run closes them.
	HTTP, HTTPS net.Listener
	// TLS is for HTTPS: where certificates come from.
	TLS *tls.Config
	// Challenge answers what certificate authorities ask on HTTP, and leaves the
	// rest to next; nil: nothing is asked.
	Challenge func(next http.Handler) http.Handler
	// Host is the address of this machine that plain ports are on; empty: every.
	Host   string
	Limits Limits
	Logger *slog.Logger
}

// Ingress serves. Make it with New, then Run; Set may be called at any time.
type Ingress struct {
	cfg    Config
	log    *slog.Logger
	proxy  http.Handler
	guard  *guard
	wake   chan struct{}
	places chan struct{} // one for each HTTP request

	plain, grpc http.RoundTripper

	mu       sync.Mutex
	desired  Desired
	sites    map[string]*service
	ports    map[Port]*service
	backends map[key]*backend
	byName   map[string]*backend
	made     int

	stats *counters
}

// New checks the configuration.
func New(c Config) (*Ingress, error) {
	switch {
	case c.Dialer == nil || c.Logger == nil:
		return nil, errors.New("ingress: a Dialer and a Logger are needed")
	case c.HTTPS != nil && c.TLS == nil:
		return nil, errors.New("ingress: HTTPS without certificates")
	}
	c.Limits.setDefaults()
	g := &Ingress{cfg: c, log: c.Logger, wake: make(chan struct{}, 1), places: make(chan struct{}, c.Limits.Requests),
		stats: newCounters(), guard: newGuard(c.Limits.Conns, c.Limits.ConnsOfOne), backends: map[key]*backend{}, byName: map[string]*backend{},
		sites: map[string]*service{}, ports: map[Port]*service{}}
	g.plain, g.grpc = g.transport(false), g.transport(true)
	g.proxy = g.newProxy()
	return g, nil
}

// Set replaces what is served.
func (g *Ingress) Set(d Desired) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.desired = d
	kept := map[key]bool{}
	g.sites, g.ports = map[string]*service{}, map[Port]*service{}
	for name, s := range d.Sites {
		g.sites[name] = g.service(s, "tcp", kept)
	}
	for p, s := range d.Ports {
		g.ports[p] = g.service(s, p.Network, kept)
	}
	for k, b := range g.backends {
		if !kept[k] {
			delete(g.backends, k)
			b.drain(g.cfg.Limits.Drain, func() { g.forget(b) })
		}
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// service finds or makes the backends of one; g.mu is held.
func (g *Ingress) service(s Service, network string, kept map[key]bool) *service {
	out := &service{}
	for _, r := range s.Replicas {
		k := key{r.ID, network, s.Port}
		b := g.backends[k]
		if r.Gone {
			if b != nil {
				b.cut()
			}
			continue
		}
		if b == nil {
			g.made++
			b = newBackend(k, "r"+strconv.Itoa(g.made), g.cfg.Dialer)
			g.backends[k], g.byName[b.name] = b, b
		}
		if !slices.Contains(out.backends, b) {
			out.backends = append(out.backends, b)
		}
		kept[k] = true
	}
	return out
}

// forget lets go of a backend that has drained.
func (g *Ingress) forget(b *backend) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.byName, b.name)
}

func (g *Ingress) site(host string) *service {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sites[host]
}

// Serves says whether a site of that name is served.
func (g *Ingress) Serves(name string) bool { return g.site(name) != nil }

func (g *Ingress) port(p Port) *service {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ports[p]
}

// Run serves until ctx ends. Then nothing new is taken, and what is under way has
// Limits.Grace to end.
func (g *Ingress) Run(ctx context.Context) error {
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	// What is under way is cut when the grace is over.
	defer context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(g.cfg.Limits.Grace, cut)
		context.AfterFunc(base, func() { timer.Stop() })
	})()
	group, work := errgroup.WithContext(ctx)
	if g.cfg.HTTP != nil {
		handler := http.Handler(http.HandlerFunc(g.serveHTTP))
		if g.cfg.Challenge != nil {
			handler = g.cfg.Challenge(handler)
		}
		group.Go(func() error { return g.serve(work, base, g.cfg.HTTP, handler, nil) })
	}
	if g.cfg.HTTPS != nil {
		group.Go(func() error { return g.serve(work, base, g.cfg.HTTPS, http.HandlerFunc(g.serveHTTP), g.cfg.TLS) })
	}
	group.Go(func() error { g.keepPorts(work, base); return nil })
	group.Go(func() error { g.probe(work); return nil })
	err := group.Wait()
	g.closeBackends()
	return err
}

func (g *Ingress) closeBackends() {
	g.mu.Lock()
	all := slices.Collect(maps.Values(g.byName))
	g.mu.Unlock()
	for _, b := range all {
		b.cut()
	}
}

// serve serves HTTP on l until ctx ends; requests under way live as long as base.
func (g *Ingress) serve(ctx, base context.Context, l net.Listener, h http.Handler, certificates *tls.Config) error {
	limits := g.cfg.Limits
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{
		Handler: h, Protocols: &protocols, TLSConfig: certificates,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: limits.Stall, WriteByteTimeout: limits.Stall},
		ReadHeaderTimeout: limits.Header, IdleTimeout: limits.Idle, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		// It ends when all has, or when base has; what is left is cut then.
		if s.Shutdown(base) != nil {
			_ = s.Close()
		}
	}()
	guarded := g.guard.listener(l, kindHTTP, g.stats)
	var err error
	if certificates != nil {
		err = s.ServeTLS(guarded, "", "")
	} else {
		err = s.Serve(guarded)
	}
	if ctx.Err() == nil {
		return fmt.Errorf("ingress: serve %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}
