// Package reconcile is one machine's loop, the one place where the leaves meet:
// view → claim → fetch → launch → report. What to do is decided by package plan;
// this package gathers its input and carries its output out.
//
// Guarantees: nothing is claimed, launched, stopped or deleted before the state
// has been synchronised after a start, and again after every sleep of the machine
// or of this process (package boottime); every step may be repeated, so a
// crash at any point is repaired by the next start; VMs keep running while this
// package does not. A VM and its disk end by what the state says of the instance,
// never because something could not be read, defined or published, nor because
// the state was lost (a day later they do).
//
// Not guaranteed: that a step is carried out at once; what fails (a fetch, a
// launch, a write) is tried again with back-off and shows as a reason in the
// claim.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

// Reconciler is the loop. Its methods are safe for concurrent use.
type Reconciler struct {
	cfg  Config
	log  *slog.Logger
	kick chan struct{}

	vigil *boottime.Vigil

	packs *packs

	mu       sync.Mutex
	deciding bool
	draining bool
	applied  map[string]definition      // last definition of each VM, by ID
	broken   map[string]definitionError // why a VM could not be defined, by ID
	world    plan.World
	told     plan.Timers // as of the last decision; nobody changes them

	// Owned by the loop.
	ranks   plan.Ranks
	briefed plan.World // of the last look, for this loop alone
	timers  plan.Timers
	woke    time.Duration // as of the vigil, when what is decided on was held
	node    string        // the register as last published, rendered
}

// New loads what an earlier run left in cfg.Dir.
func New(cfg Config) (*Reconciler, error) {
	if cfg.Now == nil {
		cfg.Now = boottime.Now
	}
	if cfg.Leases == nil {
		cfg.Leases = noLeases{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	r := &Reconciler{
		cfg: cfg, log: cfg.Logger, kick: make(chan struct{}, 1), vigil: boottime.NewVigil(cfg.Now),
		broken: map[string]definitionError{},
	}
	var err error
	if r.applied, err = loadDefinitions(r.path("vms.json")); err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	if _, err := os.Stat(r.path("draining")); err == nil {
		r.draining = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	if cfg.Loaded != nil {
		r.timers = plan.Remember(r.WorldOf(cfg.Loaded), cfg.Self, r.vmStatus())
	}
	r.packs = newPacks(cfg, r.vigil.Woke, r.Kick)
	return r, nil
}

func (r *Reconciler) path(name string) string { return filepath.Join(r.cfg.Dir, name) }

// Kick has the loop look again soon. It never blocks.
func (r *Reconciler) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// SetDraining starts or ends the draining of this node; it outlives a restart.
func (r *Reconciler) SetDraining(draining bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if draining {
		err = os.WriteFile(r.path("draining"), nil, 0o600)
	} else if err = os.Remove(r.path("draining")); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	r.draining = draining
	r.Kick()
	return nil
}

// World is what the last decision was made on.
func (r *Reconciler) World() plan.World {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.world
}

// WorldOf is the World of a view with this node's own probes.
func (r *Reconciler) WorldOf(v *crdt.View) plan.World {
	w := plan.WorldOf(v, r.cfg.Self, r.cfg.Liveness.Dead())
	w.Seen = map[stmt.Key]bool{}
	for i := range w.Instances {
		for _, k := range w.Instances[i].Voters {
			w.Seen[k] = k == r.cfg.Self || r.cfg.Liveness.Sees(k)
		}
	}
	return w
}

// Explain says why the replicas of an instance are where they are, and what this
// node is about to do of itself.
func (r *Reconciler) Explain(v *crdt.View, s *crdt.Spec) plan.Explanation {
	w := r.WorldOf(v)
	r.mu.Lock()
	timers := r.told
	r.mu.Unlock()
	return plan.Explain(plan.Input{
		Now: r.cfg.Now(), Self: r.cfg.Self, World: w, VMs: r.vmStatus(), Packs: r.packs.status([]string{s.Pack}), Accepts: r.cfg.Accepts,
		TakeoverDelay: r.cfg.TakeoverDelay, Hysteresis: r.cfg.Hysteresis, Timers: timers,
	}, s)
}

// Fetch brings a pack here for somebody who asks, beside what the loop fetches,
// and keeps it for Lease. from are asked first.
func (r *Reconciler) Fetch(ctx context.Context, c cid.Cid, from []peer.ID, progress func(store.Progress)) error {
	return r.packs.fetchNow(ctx, c, from, progress)
}

// Rescan looks again what the store holds, after something else changed it.
func (r *Reconciler) Rescan(ctx context.Context) { r.packs.scan(ctx) }

// refresh is how often the loop looks without a reason, and renews its
// register's list of packs.
const refresh = 15 * time.Second

// Run reconciles until ctx ends, and then returns nil. The VMs are left alone.
func (r *Reconciler) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { r.vigil.Run(ctx); return nil })
	g.Go(func() error { return r.packs.run(ctx) })
	g.Go(func() error { return r.loop(ctx) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (r *Reconciler) loop(ctx context.Context) error {
	views := r.cfg.State.Watch(ctx)
	timer := time.NewTimer(refresh)
	defer timer.Stop()
	synced := r.cfg.State.Synced(0)
	var secrets <-chan struct{}
	if r.cfg.Vault != nil {
		secrets = r.cfg.Vault.Changed()
	}
	var view *crdt.View
	for {
		if r.slept() {
			synced = r.cfg.State.Synced(r.woke)
		}
		wait := refresh
		if view != nil {
			wake, err := r.step(ctx, view)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				r.log.Warn("reconcile", "err", err)
				wait = time.Second
			} else if wake != 0 {
				wait = min(wait, max(wake-r.cfg.Now(), 0))
			}
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case v, ok := <-views:
			if !ok {
				return nil
			}
			view = v
		case <-synced:
			synced = nil
			r.setDeciding(true)
		case <-r.vigil.Changed():
		case <-r.cfg.VMs.Changed():
		case <-secrets:
		case <-r.cfg.Liveness.Changed():
		case <-r.cfg.Leases.Changed():
		case <-r.kick:
		case <-timer.C:
		}
	}
}

// slept says whether the machine or this process has slept since it was asked
// last. If so nothing that was known counts until the state is synchronised anew,
// and slots become vacant when that is seen then.
func (r *Reconciler) slept() bool {
	woke := r.vigil.Woke()
	if woke == r.woke {
		return false
	}
	r.log.Warn("this node slept: it decides nothing before it has synchronised; VMs run on")
	r.cfg.VMs.Hold()
	if r.cfg.Woke != nil {
		r.cfg.Woke()
	}
	r.woke, r.timers = woke, r.timers.Awake()
	r.setDeciding(false)
	return true
}

// awake says whether what the loop knows still counts.
func (r *Reconciler) awake() bool { return r.vigil.Woke() == r.woke }

func (r *Reconciler) setDeciding(deciding bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deciding != deciding {
		r.log.Info("state", "synchronised", deciding)
	}
	r.deciding = deciding
}

// Deciding says whether the state has been synchronised since the node started or
// last slept, so that it is acted upon.
func (r *Reconciler) Deciding() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.deciding
}

// step looks once. Before the state is synchronised only the register is
// published, and what must not run without the voters is stopped. A sleep in the
// midst of a step ends it where it is.
func (r *Reconciler) step(ctx context.Context, view *crdt.View) (time.Duration, error) {
	// Nothing that cannot be published keeps what runs from being looked after.
	nodeErr := r.publishNode(ctx)
	w := r.WorldOf(view)
	r.mu.Lock()
	r.world = w
	r.mu.Unlock()
	ranked := w
	ranked.Ranks = &r.ranks // for this loop alone
	ranked = ranked.Briefed(r.briefed)
	r.briefed = ranked
	r.cfg.Liveness.SetInterest(plan.Interest(ranked, r.cfg.Self))
	if !r.Deciding() {
		return 0, errors.Join(nodeErr, r.isolated(ctx, w))
	}
	out := plan.Plan(plan.Input{
		Now: r.cfg.Now(), Self: r.cfg.Self, World: ranked, VMs: r.vmStatus(),
		Packs: r.packs.status(relevant(w, r.cfg.Self)), Accepts: r.cfg.Accepts, Secrets: r.wantSecrets(view, w),
		TakeoverDelay: r.cfg.TakeoverDelay, Hysteresis: r.cfg.Hysteresis, Timers: r.timers,
		Leases: r.cfg.Leases.Status(),
	})
	if !r.awake() {
		return 0, nodeErr
	}
	r.timers = out.Timers
	r.mu.Lock()
	r.told = out.Timers
	r.mu.Unlock()
	r.packs.want(out.Fetch, out.Keep, w, len(out.Timers.Stray) == 0)
	r.cfg.GuestMesh.address(view.Rank, w, r.cfg.Self, out.Claims)
	// A claim is published before its VM is started, so that others know. When
	// that fails nothing starts, but what is here is still run, stopped and ended.
	claimErr := r.cfg.State.SetClaims(ctx, out.Claims)
	if !r.awake() {
		return 0, errors.Join(nodeErr, claimErr)
	}
	if claimErr != nil {
		claimErr = fmt.Errorf("publish claims: %w", claimErr)
		out.VMs = r.present(out.VMs)
	}
	r.cfg.Leases.Want(out.Leases) // voters must know the claims
	return out.Wake, errors.Join(nodeErr, claimErr, r.sync(ctx, w, out.VMs))
}

// wantSecrets has the vault get the secrets of the instances that this node has
// claims on. It says which instances' secrets are not all here.
func (r *Reconciler) wantSecrets(view *crdt.View, w plan.World) map[string]string {
	var own []string
	for _, c := range w.Own(r.cfg.Self) {
		own = append(own, c.Instance)
	}
	own = slices.Compact(own)
	out := map[string]string{}
	for i := range w.Instances {
		if id := w.Instances[i].ID; len(view.Secrets(id)) > 0 {
			out[id] = crdt.AwaitsSecrets
			if _, ours := slices.BinarySearch(own, id); ours && r.cfg.Vault != nil {
				delete(out, id)
			}
		}
	}
	if r.cfg.Vault != nil {
		maps.Copy(out, r.cfg.Vault.Want(view, w, own))
	}
	return out
}

// isolated stops what must not run where most of its voters do not answer.
func (r *Reconciler) isolated(ctx context.Context, w plan.World) error {
	want := plan.Isolated(w, r.cfg.Self, r.vmStatus())
	r.mu.Lock()
	defined := !slices.ContainsFunc(want, func(v plan.VM) bool { _, ok := r.applied[v.ID]; return !ok })
	r.mu.Unlock()
	if len(want) == 0 {
		return nil
	}
	if !defined {
		return errors.New("voters are lost, and the VMs here cannot be told apart before the state is synchronised")
	}
	return r.sync(ctx, w, want)
}

// present are those VMs that are on this host already.
func (r *Reconciler) present(vms []plan.VM) []plan.VM {
	here := map[string]bool{}
	for _, s := range r.cfg.VMs.List() {
		here[s.ID] = true
	}
	return slices.DeleteFunc(vms, func(v plan.VM) bool { return !here[v.ID] })
}

// relevant are the packs a decision may ask about.
func relevant(w plan.World, self stmt.Key) []string {
	var out []string
	for i := range w.Instances {
		out = append(out, w.Instances[i].Pack)
	}
	for _, c := range w.Own(self) {
		out = append(out, c.Pack)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (r *Reconciler) publishNode(ctx context.Context) error {
	n := r.cfg.Node
	n.Key, n.Addrs, n.Holds = r.cfg.Self, r.cfg.Addrs(), r.packs.holds()
	r.mu.Lock()
	n.Draining = r.draining
	r.mu.Unlock()
	if r.cfg.Mesh != nil {
		n.MeshKey, n.Address4 = r.cfg.Mesh()
	}
	if r.cfg.AcceptLabel != nil {
		labels := map[string]string{plan.AcceptLabel: r.cfg.AcceptLabel()}
		for k, v := range n.Labels {
			labels[k] = v
		}
		n.Labels = labels
	}
	text := fmt.Sprint(n) // maps are printed in key order
	if text == r.node {
		return nil
	}
	if err := r.cfg.State.SetNode(ctx, n); err != nil {
		return fmt.Errorf("publish node: %w", err)
	}
	r.node = text
	return nil
}
