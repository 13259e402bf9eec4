package reconcile

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
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

	mu     sync.Mutex
	voter  *lease.Voter
	seen   *crdt.View // the view that the voter knows
	tenant *plan.Tenant
	shown  map[string]plan.LeaseStatus
	given  uint64 // requests of nodes, this one's too, that were granted
	denied uint64
}

// LeaseStats are figures of Leases; the counts are since its start.
type LeaseStats struct {
	Held            int    // leases that this node holds
	Paused          int    // VMs here that no lease lets run
	Granted, Denied uint64 // as a voter
	RenewalsFailed  uint64 // rounds of questions without a majority
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
		tenant: plan.NewTenant(cfg.Times, cfg.Self), shown: map[string]plan.LeaseStatus{},
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
	l.tenant.Want(leases)
	l.soon()
}

// soon has Run take a step at once.
func (l *Leases) soon() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Status is how the leases do that are asked for, by instance.
func (l *Leases) Status() map[string]plan.LeaseStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tenant.Status(l.cfg.Now())
}

// Stats counts what there is and was.
func (l *Leases) Stats() LeaseStats {
	vms, now := l.cfg.VMs.List(), l.cfg.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := LeaseStats{Granted: l.given, Denied: l.denied, RenewalsFailed: l.tenant.Failed()}
	for _, status := range l.tenant.Status(now) { // any order: a sum
		if status.Held {
			s.Held++
		}
	}
	for _, vm := range vms {
		if vm.Fenced && vm.ShimPID != 0 && vm.HeldUntil <= now {
			s.Paused++
		}
	}
	return s
}

// Changed has an element after Status has changed.
func (l *Leases) Changed() <-chan struct{} { return l.changed }

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
	if plan.Register(v, l.cfg.Self, l.cfg.Now(), l.voter) {
		if err := saveVotes(l.cfg.Dir, l.voter.Memory()); err != nil {
			return err
		}
	}
	l.seen = v
	return nil
}

// step does what the tenant says.
func (l *Leases) step(ctx context.Context, asks *sync.WaitGroup) {
	vms := map[string]plan.FencedVM{}
	for _, s := range l.cfg.VMs.List() {
		vms[s.ID] = plan.FencedVM{
			Fenced: s.Fenced, HeldUntil: s.HeldUntil, Stopped: s.Phase == fogvm.Stopped,
			Lost: s.Phase == fogvm.Failed && s.ShimPID == 0,
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	out := l.tenant.Step(now, vms, nonce)
	l.send(ctx, asks, out.Asks)
	for _, e := range out.Tell {
		l.push(ctx, asks, e)
	}
	if out.Changed {
		l.show(l.tenant.Status(now))
		l.notify()
	}
}

func nonce() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint64(b[:]) >> 1
}

// show logs what has changed.
func (l *Leases) show(now map[string]plan.LeaseStatus) {
	for id, s := range now {
		if s != l.shown[id] {
			l.log.Info("lease", "instance", id, "held", s.Held, "reason", s.Reason)
		}
	}
	l.shown = now
}

// send puts questions to voters.
func (l *Leases) send(ctx context.Context, asks *sync.WaitGroup, list []lease.Ask) {
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
			l.mu.Lock()
			defer l.mu.Unlock()
			more, news := l.tenant.Answer(l.cfg.Now(), a, answer)
			l.send(ctx, asks, more)
			if news {
				l.soon()
			}
		})
	}
}

// push tells a VM until when it may run.
func (l *Leases) push(ctx context.Context, asks *sync.WaitGroup, e plan.Extension) {
	asks.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, pushTimeout)
		defer cancel()
		err := l.cfg.VMs.RunUntil(ctx, e.VM, e.Until)
		if err != nil && !errors.Is(err, fogvm.ErrNotRunning) && !errors.Is(err, fogvm.ErrNotFound) {
			l.log.Warn("a VM is not told of its lease", "vm", e.VM, "err", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.tenant.Told(e)
	})
}

func (l *Leases) notify() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}
