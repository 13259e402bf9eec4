package reconcile

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// FencedVMs are the machines that leases let run; *fogvm.Manager has these
// methods.
type FencedVMs interface {
	RunUntil(ctx context.Context, id string, until time.Duration) error
	List() []fogvm.Status
}

// LeasesConfig of Leases. The first group is required.
type LeasesConfig struct {
	Self    stmt.Key
	Streams Streams
	View    func() *crdt.View
	VMs     FencedVMs
	Dir     string // keeps the votes
	// Ready says whether the state counts: a voter that does not know that it
	// knows the voters of today grants nothing.
	Ready func() bool

	Times  lease.Times          // zero: lease.DefaultTimes
	Boot   string               // names this boot; "": the kernel's
	Now    func() time.Duration // since boot; nil: boottime.Now
	Logger *slog.Logger
}

// Leases votes on the leases of fenced instances, and holds those that this node
// runs: it asks for what it is told to want, renews, and tells the VMs until when
// they may run. Its methods are safe for concurrent use.
type Leases struct {
	cfg     LeasesConfig
	log     *slog.Logger
	changed chan struct{}
	kick    chan struct{}
	asking  chan struct{} // one token per question in progress
	serve   chan struct{} // one token per question of others

	mu    sync.Mutex
	voter *lease.Voter
	seen  *crdt.View // the view that the voter knows
	want  map[string]plan.Lease
	held  map[string]*held // by instance
}

// held is a lease that this node holds or asks for.
type held struct {
	vm      string // ID
	holder  *lease.Holder
	pushing bool // a VM is being told
	shown   plan.LeaseStatus
}

// Timing and bounds of leases.
const (
	leaseTick   = 250 * time.Millisecond
	leaseAsks   = 64 // questions at once
	leaseServes = 64 // of others
	pushTimeout = 2 * time.Second
)

// NewLeases reads the votes that an earlier run gave; Run starts it.
func NewLeases(cfg LeasesConfig) (*Leases, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = boottime.Now
	}
	if cfg.Times == (lease.Times{}) {
		cfg.Times = lease.DefaultTimes
	}
	if cfg.Boot == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("leases: %w", err)
		}
		cfg.Boot = strings.TrimSpace(string(b))
	}
	l := &Leases{
		cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		asking: make(chan struct{}, leaseAsks), serve: make(chan struct{}, leaseServes),
		want: map[string]plan.Lease{}, held: map[string]*held{},
	}
	memory, err := loadVotes(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	l.voter = lease.NewVoter(cfg.Times, cfg.Boot, cfg.Now(), memory)
	if err := saveVotes(cfg.Dir, l.voter.Memory()); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	return l, nil
}

// Want replaces the leases to ask for and to renew. A lease that is not wanted any
// more is renewed until its VM has stopped, and then given back.
func (l *Leases) Want(leases []plan.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.want)
	for _, w := range leases {
		l.want[w.Instance] = w
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Status is how the leases do that are asked for, by instance.
func (l *Leases) Status() map[string]plan.LeaseStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]plan.LeaseStatus, len(l.held))
	now := l.cfg.Now()
	for id, h := range l.held {
		out[id] = h.status(now)
	}
	return out
}

// Changed has an element after Status has changed.
func (l *Leases) Changed() <-chan struct{} { return l.changed }

func (h *held) status(now time.Duration) plan.LeaseStatus {
	why := h.holder.Missing(now)
	return plan.LeaseStatus{Held: why == "", Outdated: why != "" && h.holder.Outdated(), Reason: why}
}

// Run votes and holds until ctx ends, and then returns nil. The VMs run on until
// their leases end.
func (l *Leases) Run(ctx context.Context) error {
	l.cfg.Streams.Handle(ProtoLease, l.vote)
	var asks sync.WaitGroup
	defer asks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	for {
		if err := l.look(); err != nil {
			l.log.Error("votes are not kept: this node grants nothing", "err", err)
		}
		l.step(ctx, &asks)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-l.kick:
		}
	}
}

// look shows the voter what it votes on, so that the wait of new voters counts
// from when they were seen.
func (l *Leases) look() error {
	v := l.cfg.View()
	if !l.cfg.Ready() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if v == l.seen {
		return nil
	}
	now, changed := l.cfg.Now(), false
	for _, s := range v.Instances() {
		if votes(&s, l.cfg.Self) {
			changed = l.voter.See(now, s.ID, lease.SetOf(s.Term, s.Voters), s.Term) || changed
		}
	}
	for _, id := range l.voter.Instances() {
		if _, lives := v.Instance(id); !lives {
			changed = l.voter.Forget(id) || changed
		}
	}
	if changed {
		if err := saveVotes(l.cfg.Dir, l.voter.Memory()); err != nil {
			return err
		}
	}
	l.seen = v
	return nil
}

// step begins and ends leases as they are wanted, asks what is due, and tells the
// VMs.
func (l *Leases) step(ctx context.Context, asks *sync.WaitGroup) {
	vms := map[string]fogvm.Status{}
	for _, s := range l.cfg.VMs.List() {
		vms[s.ID] = s
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	for _, w := range l.want { // any order: each is by itself
		l.begin(w, vms)
	}
	for id, h := range maps.Clone(l.held) { // any order: each is by itself
		vm, there := vms[h.vm]
		if _, wanted := l.want[id]; !wanted && l.end(ctx, asks, id, h, vm, there) {
			continue
		}
		l.send(ctx, asks, h, h.holder.Tick(now))
		if there && vm.Fenced && vm.HeldUntil < h.holder.Until() {
			l.push(ctx, asks, h)
		}
		if s := h.status(now); s != h.shown {
			l.log.Info("lease", "instance", id, "held", s.Held, "reason", s.Reason)
			h.shown = s
			l.notify()
		}
	}
}

// begin asks for a lease, or asks by what has changed of it.
func (l *Leases) begin(w plan.Lease, vms map[string]fogvm.Status) {
	id, set := plan.VMID(w.Instance, w.Slot), lease.SetOf(w.Term, w.Voters)
	h := l.held[w.Instance]
	if h != nil && h.holder.Set() == set {
		return
	}
	until := vms[id].HeldUntil
	if h != nil {
		until = max(until, h.holder.Until())
	}
	var nonce [8]byte
	rand.Read(nonce[:]) // never fails (crypto/rand)
	base := lease.Request{Instance: w.Instance, Set: set, Term: w.Term, Holder: l.cfg.Self}
	l.held[w.Instance] = &held{
		vm: id, holder: lease.NewHolder(l.cfg.Times, base, w.Voters, binary.BigEndian.Uint64(nonce[:])>>1, until),
	}
	l.notify()
}

// end gives a lease back that is not wanted any more, once it is certain that its
// VM does not run, and reports whether it is over.
func (l *Leases) end(ctx context.Context, asks *sync.WaitGroup, id string, h *held, vm fogvm.Status, there bool) bool {
	switch {
	case h.pushing:
		return false
	case !there || vm.Phase == fogvm.Stopped:
		l.send(ctx, asks, h, h.holder.Release())
	case vm.Phase == fogvm.Failed && vm.ShimPID == 0: // it may run where nobody sees it, until its lease ends
	default:
		return false
	}
	delete(l.held, id)
	l.notify()
	return true
}

// send puts questions to voters.
func (l *Leases) send(ctx context.Context, asks *sync.WaitGroup, h *held, list []lease.Ask) {
	for _, a := range list {
		select {
		case l.asking <- struct{}{}:
		default:
			continue // as one that was not answered
		}
		asks.Go(func() {
			defer func() { <-l.asking }()
			answer, err := l.ask(ctx, a)
			if err != nil {
				l.log.Debug("a voter does not answer", "voter", a.To, "instance", a.Instance, "err", err)
				return
			}
			if a.Release {
				return
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.held[a.Instance] != h {
				return
			}
			before := h.holder.Until()
			l.send(ctx, asks, h, h.holder.Answer(l.cfg.Now(), a.To, a.Nonce, answer))
			if h.holder.Until() != before {
				select {
				case l.kick <- struct{}{}:
				default:
				}
			}
		})
	}
}

// push tells a VM until when it may run.
func (l *Leases) push(ctx context.Context, asks *sync.WaitGroup, h *held) {
	if h.pushing {
		return
	}
	h.pushing = true
	until := h.holder.Until()
	asks.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, pushTimeout)
		defer cancel()
		err := l.cfg.VMs.RunUntil(ctx, h.vm, until)
		if err != nil && !errors.Is(err, fogvm.ErrNotRunning) && !errors.Is(err, fogvm.ErrNotFound) {
			l.log.Warn("a VM is not told of its lease", "vm", h.vm, "err", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		h.pushing = false
	})
}

func (l *Leases) notify() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}
