package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/cmd/internal/routes"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg/ingress"
)

// publicSites is the ingress of a node that is one.
type publicSites struct {
	*ingress.Ingress
	certificates *ingress.Certificates // nil without HTTPS
	listeners    []net.Listener
	routes       routes.Config
	operators    func() []stmt.Key
	live         func(stmt.Key) string
	log          *slog.Logger
}

// openIngress listens, when the node is to serve the public.
func (d *formd) openIngress() (err error) {
	if !d.cfg.Ingress {
		return nil
	}
	s := &publicSites{operators: d.accept.operatorsNow, live: d.prober.Live, log: d.log.With("part", "ingress")}
	d.sites = s // closed from now on, whatever happens
	s.routes = routes.Config{Zones: append([]string{d.id.Full().Zone}, d.cfg.IngressDomain...), Domains: d.cfg.IngressDomain}
	if s.routes.Low, s.routes.High, err = config.ParsePorts(d.cfg.IngressPorts); err != nil {
		return usage(err)
	}
	c := ingress.Config{Dialer: &publicDialer{self: d.id.self(), node: d.node, local: d.public}, Logger: s.log}
	if c.HTTP, err = s.listen(d.cfg.IngressHTTP); err != nil {
		return fmt.Errorf("--ingress-http: %w", err)
	}
	if c.HTTPS, err = s.listen(d.cfg.IngressHTTPS); err != nil {
		return fmt.Errorf("--ingress-https: %w", err)
	}
	if c.HTTPS != nil {
		directory := d.cfg.IngressACME
		if directory == config.Internal {
			directory = ingress.Internal
		}
		s.certificates, err = ingress.NewCertificates(ingress.CertConfig{
			Dir: d.path("ingress"), Directory: directory, Email: d.cfg.IngressEmail,
			Allowed: func(name string) bool { return s.Ingress.Serves(name) }, HTTP: c.HTTP, HTTPS: c.HTTPS, Logger: s.log,
		})
		if err != nil {
			return err
		}
		c.TLS, c.Challenge = s.certificates.TLS(), s.certificates.Challenge
	}
	if s.Ingress, err = ingress.New(c); err != nil {
		return err
	}
	return d.figures.Register(newIngressCollector(s))
}

func (s *publicSites) listen(address string) (net.Listener, error) {
	if address == config.Off {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err == nil {
		s.listeners = append(s.listeners, l)
	}
	return l, err
}

// close releases what openIngress took. The listeners may have been closed by run.
func (s *publicSites) close() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, l := range s.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.certificates != nil {
		s.certificates.Close()
	}
	return errors.Join(errs...)
}

// Who is dead is looked at every second; a view is turned into routes at most so
// often.
const (
	routesInterval = time.Second
	routesPause    = 100 * time.Millisecond
)

// run serves until ctx ends.
func (s *publicSites) run(ctx context.Context, views <-chan *crdt.View) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Ingress.Run(ctx) })
	g.Go(func() error { s.follow(ctx, views); return nil })
	return g.Wait()
}

// follow keeps what is served as the latest view has it.
func (s *publicSites) follow(ctx context.Context, views <-chan *crdt.View) {
	tick := time.NewTicker(routesInterval)
	defer tick.Stop()
	var view *crdt.View
	var said []string
	gone := map[stmt.Key]bool{}
	for {
		changed := false
		select {
		case <-ctx.Done():
			return
		case v, ok := <-views:
			if !ok {
				return
			}
			view, changed = v, true
		case <-tick.C:
		}
		if view == nil {
			continue
		}
		if now := s.gone(view); changed || !maps.Equal(now, gone) {
			gone = now
			c := s.routes
			c.First, c.Gone = s.operators(), func(k stmt.Key) bool { return gone[k] }
			desired, problems := routes.Of(view, c)
			s.Set(desired)
			if !slices.Equal(problems, said) && len(problems) > 0 {
				s.log.Warn("not all that is public is served", "problems", strings.Join(problems, "; "))
			}
			said = problems
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(routesPause): // views may come often
		}
	}
}

func (s *publicSites) gone(v *crdt.View) map[stmt.Key]bool {
	out := map[stmt.Key]bool{}
	for _, n := range v.Nodes() {
		if s.live(n.Key) == "dead" {
			out[n.Key] = true
		}
	}
	return out
}
