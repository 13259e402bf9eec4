package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/cmd/internal/routes"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/automerge"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/docs"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/reconcile"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/p2p/fair"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/wg"
)

// gcPercent trades a little CPU for memory: an idle node's heap is small, and
// its garbage would double it.
const gcPercent = 50

// run runs a node until a signal or ctx ends it.
func run(ctx context.Context, c config.Config, stdout, stderr io.Writer) error {
	log := newLogger(c, stderr)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	d := &formd{cfg: c, mesh: &mesh{}, log: log, stdout: stdout, stderr: stderr, now: time.Now, started: time.Now()}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer watchSignals(func(s os.Signal) {
		log.Info("stopping", "signal", s.String())
		stop(errSignal)
	})()
	if err := d.open(); err != nil {
		return errors.Join(err, d.close())
	}
	err := d.serve(ctx)
	return errors.Join(err, d.close())
}

func newLogger(c config.Config, w io.Writer) *slog.Logger {
	level := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}[c.LogLevel]
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// formd is one node: the parts, in the order they are opened.
type formd struct {
	cfg            config.Config
	log            *slog.Logger
	stdout, stderr io.Writer
	now            func() time.Time
	started        time.Time

	lock      *os.File
	id        *identity
	accept    *acceptance
	store     *store.Store
	state     *crdt.Replica
	admission *admission
	node      *p2p.Node
	mesh      *mesh
	vms       *fogvm.Manager
	prober    *reconcile.Prober
	vault     *reconcile.Vault
	leases    *reconcile.Leases
	rec       *reconcile.Reconciler
	register  crdt.Node
	warnings  []string

	public *publicPorts
	sites  *publicSites // nil: this node is no ingress

	figures *prometheus.Registry
	servers []server // HTTP, with their listeners
	peers   *peerListener
	ready   bool // run has begun: the parts close themselves
}

// open makes every part, and listens, without starting anything. What it opened
// is closed by close.
func (d *formd) open() error {
	steps := []struct {
		name string
		do   func() error
	}{
		{"data directory", d.openData},
		{"store", d.openStore},
		{"state", d.openState},
		{"network", d.openNetwork},
		{"machines", d.openVMs},
		{"reconciler", d.openReconciler},
		{"api", d.openAPI},
		{"ingress", d.openIngress},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			var p *api.Problem
			if errors.As(err, &p) {
				return err
			}
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (d *formd) openData() (err error) {
	if d.cfg.Data, err = filepath.Abs(d.cfg.Data); err != nil {
		return err
	}
	if d.lock, err = lockData(d.cfg.Data); err != nil {
		return err
	}
	if d.id, err = loadIdentity(d.cfg, d.now()); err != nil {
		return err
	}
	d.log = d.log.With("node", d.id.self().String())
	for _, k := range d.id.Operators {
		if word := k.String(); !slices.Contains(d.cfg.Operator, word) {
			d.cfg.Operator = append(slices.Clone(d.cfg.Operator), word)
		}
	}
	d.accept, err = newAcceptance(d.cfg, d.id.joined(), d.path("operators.json"))
	return err
}

func (d *formd) path(name string) string { return filepath.Join(d.cfg.Data, name) }

func (d *formd) openStore() (err error) {
	d.store, err = store.Open(store.Config{Dir: d.path("store"), Logger: d.log.With("part", "store")})
	return err
}

func (d *formd) openState() (err error) {
	// A first start may have ended before it came here.
	_, err = os.Stat(d.path("state"))
	returning := err == nil && !d.id.First
	d.state, err = crdt.Open(crdt.ReplicaConfig{
		Dir: d.path("state"), Key: d.id.Key, Network: d.id.network(), Root: d.id.Root, RootKey: d.id.RootKey,
		Engine: automerge.New(), Returning: returning, Now: d.now, Boot: boottime.Now, Logger: d.log.With("part", "crdt"),
		// Nothing is heard of peers before the node is there.
		Offence: func(p peer.ID, reason crdt.Reason) { d.node.Offence(p, reason.String()) },
	})
	if err != nil {
		return err
	}
	if d.id.Member != nil {
		if _, err := d.state.Submit(context.Background(), d.id.Member); err != nil {
			return fmt.Errorf("own membership: %w", err)
		}
	}
	if d.id.RootKey != nil {
		if err := d.state.SetAnyOwner(context.Background(), d.accept.policy.Any); err != nil {
			return fmt.Errorf("admit owners: %w", err)
		}
	}
	return nil
}

func (d *formd) openNetwork() (err error) {
	if d.admission, err = newAdmission(d.id, d.state, d.now); err != nil {
		return err
	}
	c := p2p.Config{
		// The ID in full: a client that has only an address learns from the
		// protocol names what network to sign its session for.
		Key: d.id.Key, Network: d.id.network().String(), Listen: d.cfg.Listen,
		Bootstrap: slices.Concat(d.cfg.Bootstrap, d.id.Bootstrap, knownAddrs(d.state.View(), d.id.self())),
		Dir:       d.path("p2p"), Blocks: d.store.Blocks(), Source: d.store.Source(),
		MDNS: !d.cfg.NoMDNS, Portmap: !d.cfg.NoPortmap, Admission: d.admission, Logger: d.log.With("part", "p2p"),
	}
	if d.mesh.key, err = loadMeshKey(d.path("mesh.key")); err != nil {
		return err
	}
	if d.mesh.space, err = wg.NewSpace(d.id.network(), d.id.Full().Prefix4); err != nil {
		return err
	}
	d.mesh.address6 = d.mesh.space.Address6(policy.Party{Node: d.id.self()}.Identity())
	c.Inner = d.mesh.prefixes()
	if err := d.openPort(c); err != nil {
		return err
	}
	if err := d.openCarrier(); err != nil {
		return err
	}
	return d.openDevice()
}

// Bounds of the addresses taken from the state: in all, and of one node.
const (
	maxKnown      = 32
	maxKnownOfOne = 4
)

// knownAddrs are the addresses that other nodes signed into the state: a node
// that was away finds back by them, also when the ticket's peers are gone.
func knownAddrs(v *crdt.View, self stmt.Key) []string {
	var out []string
	nodes := slices.Clone(v.Nodes())
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] }) // some may be gone for good
	for _, n := range nodes {
		known := 0
		for _, a := range n.Addrs {
			if _, err := peer.AddrInfoFromString(a); err == nil && n.Key != self && known < maxKnownOfOne && len(out) < maxKnown {
				out = append(out, a)
				known++
			}
		}
	}
	return out
}

// warn tells something on stderr, and to doctor. After "; " comes what to do.
func (d *formd) warn(text string) {
	d.warnings = append(d.warnings, text)
	fmt.Fprintln(d.stderr, "formd: "+text)
}

func (d *formd) openVMs() error {
	if err := fogvm.NoCore(); err != nil { // keys and secrets are in memory
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := fogvm.Config{
		Dir: d.path("vms"), Accel: d.cfg.Accel, Driver: d.cfg.VMDriver, ShimCommand: []string{self, "vm"},
		Logger: d.log.With("part", "fogvm"),
	}
	if c.Egress, err = config.ParseNetworks(d.cfg.AllowEgress); err != nil {
		return usage(err)
	}
	if c.Driver == fogvm.DriverQEMU {
		if c.GuestBinary, err = guestBinary(); err != nil {
			return err
		}
	}
	if d.vms, err = fogvm.New(c); err != nil {
		return err
	}
	if _, warning := d.vms.Accel(); warning != "" {
		d.warn(warning)
	}
	return nil
}

func (d *formd) openReconciler() error {
	d.store.SetFetcher(fetcher{d.node})
	d.state.SetTransport(d.node, d.node)
	labels, err := config.ParseLabels(d.cfg.Label)
	if err != nil {
		return usage(err)
	}
	total, err := offer(d.cfg)
	if err != nil {
		return err
	}
	accel, _ := d.vms.Accel()
	d.register = crdt.Node{
		Key: d.id.self(), Total: total, Labels: labels, Region: d.cfg.Region, Version: versionText(), Accel: accel,
	}
	maps.Copy(d.register.Labels, routes.Labels(d.cfg)) // labels of its own have another prefix
	if d.register.Operators, err = d.id.named(d.cfg.Operator); err != nil {
		return err
	}
	d.prober = reconcile.NewProber(reconcile.ProberConfig{
		Self: d.id.self(), Streams: d.node, View: d.state.View, Key: d.id.Key, Gossip: d.node, Logger: d.log.With("part", "live"),
	})
	if err := os.MkdirAll(d.path("leases"), 0o700); err != nil {
		return err
	}
	d.leases, err = reconcile.NewLeases(reconcile.LeasesConfig{
		Self: d.id.self(), Streams: d.node, View: d.state.View, VMs: d.vms, Dir: d.path("leases"),
		Ready: func() bool { return d.rec.Deciding() }, Logger: d.log.With("part", "leases"),
	})
	if err != nil {
		return err
	}
	d.vault = reconcile.NewVault(reconcile.VaultConfig{
		Key: d.id.Key, Streams: d.node, View: d.state.View,
		World: func() plan.World {
			if !d.rec.Deciding() {
				return plan.World{} // who keeps what is not known
			}
			return d.rec.WorldOf(d.state.View())
		},
		Logger: d.log.With("part", "secrets"),
	})
	d.rec, err = reconcile.New(reconcile.Config{
		Self: d.id.self(), State: d.state, Loaded: d.state.View(), Content: d.store, Keeper: d.store, VMs: d.vms, Liveness: d.prober, Vault: d.vault, Leases: d.leases,
		Dir: d.path("reconcile"), Node: d.register, Addrs: d.node.Addrs, Mesh: d.mesh.published, GuestMesh: d.guestMesh(), Accepts: d.accept.accepts,
		AcceptLabel: d.accept.label, TakeoverDelay: time.Duration(d.cfg.TakeoverDelay),
		Hysteresis: hysteresis(d.cfg), Woke: d.node.Recheck,
		Logger: d.log.With("part", "reconcile"),
	})
	if err != nil {
		return err
	}
	d.accept.kick = d.rec.Kick
	return nil
}

// hysteresis is rebalance-after as package plan has it.
func hysteresis(c config.Config) time.Duration {
	if c.RebalanceAfter == 0 {
		return -1
	}
	return time.Duration(c.RebalanceAfter)
}

// server is one HTTP server and what it listens on.
type server struct {
	l     net.Listener
	serve func(ctx context.Context) error
}

func (d *formd) openAPI() error {
	host := &hostInfo{
		cfg: d.cfg, id: d.id, accept: d.accept, node: d.node, rec: d.rec, mesh: d.mesh, prober: d.prober, state: d.state,
		owner: d.admission.owner, register: d.register, started: d.started, web: config.Off, metrics: config.Off,
	}
	place := &placement{self: d.id.self(), rec: d.rec, prober: d.prober}
	vms := guests{d.vms}
	refused := newRefusals(d.log.With("part", "api"), d.now)
	d.figures = newFigures(newCollector(d.node, d.mesh, d.state, place, vms, d.leases.Stats, d.admission.refusals, refused.counts))
	metrics := metricsHandler(d.figures)
	op := &operator{d.id, d.node.Addrs, d.state, d.store, d.rec, d.now}
	h := api.NewHandler(api.Config{
		State:     &submitter{Replica: d.state, id: d.id, accept: d.accept, now: d.now, log: d.log},
		Signed:    d.state,
		Placement: place, Packs: &content{d.store, d.rec, d.accept}, Host: host, Guests: vms,
		Operator: op, Root: op,
		Mesh: d.mesh.status, Public: publicURLs(d.id.Full().Zone),
		Version: versionText(), OpenAPI: docs.OpenAPI, Metrics: metrics, Pprof: pprofHandler(), Now: d.now,
		Publishers: d.id.publishers(), Logger: d.log.With("part", "api"),
		Refused: func(ctx context.Context, err error) {
			if p, reason := callingPeer(ctx), refusalReason(err); p != "" && reason != "" {
				refused.refuse(p, reason, err)
			}
		},
	})
	d.peers = newPeerListener(refused.refuse)
	d.addServer(httpServer(h, func(ctx context.Context) api.Caller {
		p := callingPeer(ctx)
		return api.Caller{Peer: p.String(), Owner: d.admission.owner(p)}
	}, d.log), d.peers)
	socket, err := listenSocket(d.cfg.Socket())
	if err != nil {
		return err
	}
	d.addServer(httpServer(h, func(context.Context) api.Caller { return api.Caller{Local: true} }, d.log), socket)
	public := func(context.Context) api.Caller { return api.Caller{} }
	web, moved, err := listenWeb(d.cfg.Web, config.DefaultWeb)
	if err != nil {
		return fmt.Errorf("--web: %w", err)
	}
	if web != nil {
		host.web = web.Addr().String()
		if moved {
			d.warn(fmt.Sprintf("%s is taken: the web address is %s; name a free one by --web", config.DefaultWeb, host.web))
		}
		d.addServer(httpServer(readOnly(h), public, d.log), web)
	}
	if d.cfg.Metrics != config.Off {
		l, _, err := listenWeb(d.cfg.Metrics, "")
		if err != nil {
			return fmt.Errorf("--metrics: %w", err)
		}
		host.metrics = l.Addr().String()
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", metrics)
		d.addServer(httpServer(mux, public, d.log), l)
	}
	host.warnings = append([]string{}, d.warnings...)
	streams := &guestStreams{vms: d.vms, view: d.state.View, owner: d.admission.owner, refused: refused.refuse, log: d.log.With("part", "streams")}
	d.node.Handle(api.Proto, d.peers.handle)
	d.node.Handle(api.ProtoProxy, streams.proxy)
	d.node.Handle(api.ProtoExec, streams.exec)
	d.public = &publicPorts{vms: d.vms, view: d.state.View, streams: streams, places: fair.New(maxPublic, maxPublicOfOne)}
	d.node.Handle(api.ProtoPublic, d.public.serve)
	d.node.Handle(protoMesh, d.mesh.handler(func(p peer.ID) bool { return d.admission.stays(d.state.View(), p) }, refused.refuse))
	return nil
}

// serve runs every part until ctx ends, and then in order: no new request, then
// nothing is decided any more, then (on --stop-vms) the VMs, then the state and
// the network.
func (d *formd) serve(ctx context.Context) error {
	d.ready = true
	base, endBase := context.WithCancel(context.WithoutCancel(ctx))
	defer endBase()
	below, baseCtx := errgroup.WithContext(base)
	below.Go(func() error { return named("p2p", d.node.Run(baseCtx)) })
	below.Go(func() error { return named("mesh", d.mesh.carrier.Run(baseCtx)) })
	below.Go(func() error {
		return named("mesh", d.mesh.runDevice(baseCtx, d.state.Watch(baseCtx), d.id.self(), d.prober.Dead, d.rec.Kick))
	})
	below.Go(func() error { d.stations().run(baseCtx); return nil })
	below.Go(func() error { return named("state", d.state.Run(baseCtx)) })
	below.Go(func() error { return named("machines", d.vms.Run(baseCtx)) })
	below.Go(func() error {
		d.admission.enforce(baseCtx, d.state.Watch(baseCtx), d.node, d.log.With("part", "admission"))
		return nil
	})

	above, workCtx := errgroup.WithContext(ctx)
	above.Go(func() error { return named("liveness", d.prober.Run(workCtx)) })
	above.Go(func() error { return named("secrets", d.vault.Run(workCtx)) })
	above.Go(func() error { return named("leases", d.leases.Run(workCtx)) })
	above.Go(func() error { return named("reconciler", d.rec.Run(workCtx)) })
	above.Go(func() error { d.age(workCtx); return nil })
	for _, s := range d.servers {
		above.Go(func() error { return s.serve(workCtx) })
	}
	if d.sites != nil {
		above.Go(func() error { return named("ingress", d.sites.run(workCtx, d.state.Watch(workCtx))) })
	}
	above.Go(func() error { return d.announce(workCtx) })
	above.Go(func() error { // what runs below must not end before
		select {
		case <-baseCtx.Done():
			return errors.New("a part stopped")
		case <-workCtx.Done():
			return nil
		}
	})
	err := above.Wait()
	d.notify(daemon.SdNotifyStopping)
	if d.cfg.StopVMs {
		stop, cancel := context.WithTimeout(base, time.Minute)
		err = errors.Join(err, named("stop VMs", d.vms.Shutdown(stop)))
		cancel()
	}
	endBase()
	if berr := below.Wait(); berr != nil {
		err = errors.Join(berr, err)
	}
	return err
}

func named(part string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", part, err)
	}
	return nil
}
