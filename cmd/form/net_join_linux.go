package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/wg/dns"
	"github.com/formthefog/formation/wg/embedded"
	"github.com/formthefog/formation/wg/link"
	"github.com/formthefog/formation/wg/splitdns"
)

// network is an interface on the mesh, with what goes with it.
type network struct {
	name  string
	mesh  *agent.Mesh
	names *dns.Server
	log   *slog.Logger
	state string // file, of what is set of the resolver
	way   bool   // an address in the way of another has been told
}

// join is the interface of a device, until ctx ends or somebody says leave. ready is
// called when it is up.
func (a *app) join(ctx context.Context, l launch, o joinOptions, ready func(joined) error) (err error) {
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	cfg, device, err := l.mesh(log)
	if err != nil {
		return err
	}
	place, err := agent.PlaceIn(joinDir, cfg.Identity)
	if err != nil {
		return err
	}
	socket, err := place.Listen()
	if err != nil {
		return err
	}
	cfg.TUN = o.open
	m, err := agent.New(cfg)
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	n := &network{name: o.name, mesh: m, log: log, state: place.File("dns")}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer cancel() // somebody said leave
		return agent.Serve(ctx, m, socket, 0)
	})
	g.Go(func() error { return m.Device().Serve(ctx) })
	g.Go(func() error {
		if err := n.up(ctx, l, !o.noDNS, g); err != nil {
			return err
		}
		if err := ready(joined{Interface: o.name, Address: m.Address().String(), Device: cfg.Identity.Device}); err != nil {
			log.Warn("nobody waits for this", "err", err)
		}
		return n.follow(ctx)
	})
	return errors.Join(g.Wait(), device.Close())
}

// open makes the interface. Peers reach what is for its addresses alone, and ask for
// nothing there unless they may: who runs a replica's host can be the replica.
func (o joinOptions) open(own []netip.Addr) (tun.Device, error) {
	d, err := tun.CreateTUN(o.name, agent.MTU)
	if err != nil {
		return nil, err
	}
	only := &embedded.Only{Device: d}
	only.Set(own)
	if o.incoming {
		return only, nil
	}
	return embedded.NewAnswers(only, agent.Boottime), nil
}

// up gives the interface its address and routes, and answers names there.
func (n *network) up(ctx context.Context, l launch, resolver bool, g *errgroup.Group) (err error) {
	if err := n.apply(); err != nil {
		return err
	}
	scope := names.Label(l.Owner)
	n.names, err = dns.New(dns.Config{Zone: l.Full().Zone, Reverse: []netip.Prefix{n.mesh.Space().Prefix4(), n.mesh.Space().Prefix6()}, Scope: func(netip.Addr) string { return scope }})
	if err != nil {
		return err
	}
	at := net.JoinHostPort(n.mesh.Address().String(), strconv.Itoa(53))
	udp, err := net.ListenPacket("udp", at)
	if err != nil {
		return fmt.Errorf("names: %w", err)
	}
	tcp, err := net.Listen("tcp", at)
	if err != nil {
		return errors.Join(fmt.Errorf("names: %w", err), udp.Close())
	}
	g.Go(func() error { return n.names.Run(ctx, udp, tcp) })
	if resolver {
		return n.resolve(ctx, l.Full().Zone, g)
	}
	return nil
}

// resolve has this machine's resolver ask here about the names of the mesh, until
// ctx ends.
func (n *network) resolve(ctx context.Context, zone string, g *errgroup.Group) error {
	r, err := splitdns.New(splitdns.Config{State: n.state})
	if err != nil {
		return err
	}
	want := splitdns.Want{Interface: n.name, Servers: []netip.Addr{n.mesh.Address()}, Domains: []string{zone}}
	by, err := r.Set(ctx, want)
	if errors.Is(err, splitdns.ErrUnsupported) {
		n.log.Warn("names of the mesh are not resolved by this machine", "err", err, "hint", r.Manual(want))
		return nil
	}
	if err != nil {
		return err
	}
	n.log.Info("names of the mesh are resolved", "by", by)
	g.Go(func() error {
		<-ctx.Done()
		return r.Undo(context.WithoutCancel(ctx))
	})
	return nil
}

// undoNames takes back what a process that was killed has set of this machine's
// resolver.
func undoNames(ctx context.Context, state string) error {
	r, err := splitdns.New(splitdns.Config{State: state})
	if err != nil {
		return err
	}
	return r.Undo(ctx)
}

// follow keeps routes and names those of the peers.
func (n *network) follow(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.mesh.News():
		}
		if err := n.apply(); err != nil {
			n.log.Warn("routes of the mesh", "err", err)
		}
		all, problems := n.mesh.Names()
		if err := n.names.Set(all); err != nil {
			problems = append(problems, err)
		}
		for _, p := range problems {
			n.log.Debug("names of the mesh", "problem", p)
		}
	}
}

// apply gives the interface its address and the routes to the peers.
func (n *network) apply() error {
	peers, _ := n.mesh.Peers() // what is wrong with them is logged where it is found
	c := link.Config{Name: n.name, MTU: agent.MTU, Addresses: n.mesh.Addresses(), Prefixes: []netip.Prefix{n.mesh.Space().Prefix6(), n.mesh.Space().Prefix4()}}
	for _, p := range peers {
		if c.Peers = append(c.Peers, p.Address6); p.Address4.IsValid() {
			c.Peers = append(c.Peers, p.Address4)
		}
	}
	inTheWay, err := link.Set(c)
	if err == nil && len(inTheWay) > 0 && !n.way {
		n.way = true
		n.log.Warn("this machine reaches a part of the mesh's addresses otherwise; those are left alone", "prefixes", inTheWay)
	}
	return err
}
