package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

var rewrite = flag.Bool("rewrite", false, "rewrite testdata")

var network = stmt.NewNetworkID("test", stmt.Key{})

// machine is a node whose parts are real but for the network, the store and the
// hypervisor.
type machine struct {
	t     *testing.T
	hub   *hub
	lib   *library
	dir   string
	n     byte
	key   stmt.Key
	shelf *shelf

	clock   clock
	end     *endpoint
	state   *crdt.Replica
	gate    *gate // between the state and the reconciler
	vms     *fogvm.Manager
	counted *counters
	rec     *Reconciler
	prober  *Prober
	vault   *Vault
	fake    *fogvm.Fake
	forged  atomic.Pointer[plan.World] // what the vault is told instead of the truth
	leases  *Leases
	wakes   atomic.Int64 // how often its connections were looked at after a sleep
	stop    context.CancelFunc
	stopped chan error
}

func newMachine(t *testing.T, h *hub, l *library, n byte) *machine {
	m := &machine{t: t, hub: h, lib: l, dir: t.TempDir(), n: n, key: stmt.KeyOf(keyOf(n)), shelf: newShelf(l)}
	m.start()
	t.Cleanup(m.kill)
	return m
}

// start runs the machine on what its directory holds.
func (m *machine) start() {
	m.t.Helper()
	m.end = m.hub.join(m.key)
	must := func(err error) {
		if err != nil {
			m.t.Fatal(err)
		}
	}
	var err error
	m.state, err = crdt.Open(crdt.ReplicaConfig{
		Dir: filepath.Join(m.dir, "state"), Key: keyOf(m.n), Network: network, Engine: crdt.NewModel(), Gossip: m.end, Streams: m.end,
		SyncInterval: 200 * time.Millisecond, Boot: m.clock.now,
	})
	must(err)
	m.gate = &gate{State: m.state}
	m.fake = &fogvm.Fake{Script: func(fogvm.VM) fogvm.FakeRun { return fogvm.FakeRun{ReadyAfter: 50 * time.Millisecond} }}
	m.vms, err = fogvm.New(fogvm.Config{
		Dir: filepath.Join(m.dir, "vms"), Driver: fogvm.DriverFake, Logger: slog.New(slog.DiscardHandler), Fake: m.fake,
	})
	must(err)
	m.prober = NewProber(ProberConfig{
		Self: m.key, Key: keyOf(m.n), Gossip: m.end, Streams: m.end, View: m.state.View, Now: m.clock.now,
		Times: live.Config{Interval: 100 * time.Millisecond, Indirect: 250 * time.Millisecond, Timeout: 500 * time.Millisecond},
	})
	m.vault = NewVault(VaultConfig{
		Key: keyOf(m.n), Now: m.clock.now, Streams: m.end, View: m.state.View, World: func() plan.World {
			if w := m.forged.Load(); w != nil {
				return *w
			}
			return m.rec.WorldOf(m.state.View())
		},
	})
	m.counted = &counters{VMs: m.vms, Liveness: m.prober}
	must(os.MkdirAll(filepath.Join(m.dir, "leases"), 0o700))
	m.leases, err = NewLeases(LeasesConfig{
		Self: m.key, Streams: m.end, View: m.state.View, VMs: m.vms, Dir: filepath.Join(m.dir, "leases"),
		Ready: func() bool { return m.rec.Deciding() }, Times: testLeases,
	})
	must(err)
	m.rec, err = New(Config{
		Now: m.clock.now, Woke: func() { m.wakes.Add(1) },
		Self: m.key, State: m.gate, Loaded: m.state.View(), Content: m.shelf, Keeper: m.shelf,
		VMs: countedVMs{m.counted}, Liveness: countedLiveness{m.counted}, Vault: m.vault, Leases: m.leases,
		Dir: filepath.Join(m.dir, "reconcile"), Addrs: func() []string { return nil }, TakeoverDelay: 300 * time.Millisecond,
		Node: crdt.Node{Total: crdt.Resources{CPUs: 4, Memory: 8 << 30, Disk: 100 << 30}},
	})
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	m.stop, m.stopped = cancel, make(chan error, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.state.Run(ctx) })
	g.Go(func() error { return m.vms.Run(ctx) })
	g.Go(func() error { return m.prober.Run(ctx) })
	g.Go(func() error { return m.vault.Run(ctx) })
	g.Go(func() error { return m.leases.Run(ctx) })
	g.Go(func() error { return m.rec.Run(ctx) })
	go func() { m.stopped <- g.Wait() }()
}

// kill takes the machine off the network and ends it, its fake VMs included.
func (m *machine) kill() {
	if m.stop == nil {
		return
	}
	m.end.setCut(true)
	m.stop()
	if err := <-m.stopped; err != nil {
		m.t.Errorf("machine %d: %v", m.n, err)
	}
	m.stop = nil
}

// clock is a machine's time since boot. It can be stopped, and then
// put forward.
type clock struct {
	mu      sync.Mutex
	stopped bool
	at      time.Duration // if stopped
}

func (c *clock) now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return c.at
	}
	return boottime.Now()
}

// stop puts the clock forward and stops it there.
func (c *clock) stop(forward time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.at = boottime.Now()
	}
	c.stopped, c.at = true, c.at+forward
}

// owner signs changes and hands them to a machine.
type owner struct {
	t  *testing.T
	a  *crdt.Author
	id string
}

func ship(t *testing.T, m *machine, pack string, replicas int) *owner {
	t.Helper()
	a, err := crdt.NewAuthor(keyOf(200), network, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, raws, err := a.Create(crdt.Spec{
		Name: "web", Pack: pack, Replicas: replicas, Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	o := &owner{t, a, id}
	o.submit(m, raws)
	return o
}

func (o *owner) submit(m *machine, raws [][]byte) {
	o.t.Helper()
	if _, err := m.state.Submit(context.Background(), raws...); err != nil {
		o.t.Fatal(err)
	}
}

func (o *owner) set(m *machine, f func(*crdt.Spec)) {
	o.t.Helper()
	raws, err := o.a.Set(o.id, f)
	if err != nil {
		o.t.Fatal(err)
	}
	o.submit(m, raws)
}

// ready are the nodes whose claims on the instance are ready, by slot, in m's
// view; anything else is an error.
func (o *owner) ready(m *machine, replicas int) (map[int]stmt.Key, error) {
	out := map[int]stmt.Key{}
	for _, c := range m.state.View().Claims(o.id) {
		if _, dead := m.prober.Dead()[c.Node]; dead {
			continue
		}
		if !c.Ready {
			return nil, fmt.Errorf("slot %d is %s (%s)", c.Slot, c.Phase, c.Reason)
		}
		if _, twice := out[c.Slot]; twice {
			return nil, fmt.Errorf("slot %d is held twice", c.Slot)
		}
		out[c.Slot] = c.Node
	}
	if len(out) != replicas {
		return nil, fmt.Errorf("%d of %d replicas", len(out), replicas)
	}
	return out, nil
}

func (o *owner) waitReady(m *machine, replicas int) (out map[int]stmt.Key) {
	o.t.Helper()
	within(o.t, 20*time.Second, fmt.Sprintf("%d replicas", replicas), func() (err error) {
		out, err = o.ready(m, replicas)
		return err
	})
	return out
}

// Four machines run an instance through its life: shipped, a machine killed and
// back, updated, scaled, drained, deleted.
func TestLifeOfAnInstance(t *testing.T) {
	h, l := newHub(), newLibrary()
	p1, p2 := l.add("one", store.RunConfig{}), l.add("two", store.RunConfig{})
	all := map[stmt.Key]*machine{}
	var ms []*machine
	for n := range byte(4) {
		m := newMachine(t, h, l, n+1)
		ms, all[m.key] = append(ms, m), m
	}
	o := ship(t, ms[0], p1, 2)
	held := o.waitReady(ms[3], 2)
	if held[0] == held[1] {
		t.Fatal("two replicas share a machine")
	}

	victim := all[held[0]]
	witness := ms[slices.IndexFunc(ms, func(m *machine) bool { return m != victim })]
	victim.kill()
	within(t, 20*time.Second, "takeover", func() error {
		now, err := o.ready(witness, 2)
		if err == nil && now[0] == victim.key {
			err = errors.New("the dead machine still holds the slot")
		}
		return err
	})
	victim.start()
	within(t, 20*time.Second, "the returned machine trims", func() error {
		if n := len(victim.vms.List()); n != 0 {
			return fmt.Errorf("%d VMs", n)
		}
		_, err := o.ready(victim, 2)
		return err
	})

	o.set(witness, func(s *crdt.Spec) { s.Pack = p2 })
	within(t, 20*time.Second, "the update", func() error {
		if _, err := o.ready(witness, 2); err != nil {
			return err
		}
		for _, c := range witness.state.View().Claims(o.id) {
			if c.Pack != p2 {
				return fmt.Errorf("slot %d runs %s", c.Slot, c.Pack)
			}
		}
		return nil
	})

	o.set(witness, func(s *crdt.Spec) { s.Replicas = 3 })
	held = o.waitReady(witness, 3)
	drained := all[held[2]]
	if err := drained.rec.SetDraining(true); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the drained machine is empty", func() error {
		if n := len(drained.vms.List()); n != 0 {
			return fmt.Errorf("%d VMs", n)
		}
		_, err := o.ready(witness, 3)
		return err
	})

	raws, err := o.a.Delete(o.id)
	if err != nil {
		t.Fatal(err)
	}
	o.submit(witness, raws)
	for _, m := range ms {
		within(t, 20*time.Second, "nothing is left", func() error {
			if n, c := len(m.vms.List()), len(m.state.View().ClaimsBy(m.key)); n+c != 0 {
				return fmt.Errorf("machine %d: %d VMs, %d claims", m.n, n, c)
			}
			return nil
		})
	}
}

// A fetch that fails is tried again, shows its reason, and gives up the slot
// after a few attempts to whoever can.
func TestFetchFailuresShow(t *testing.T) {
	h, l := newHub(), newLibrary()
	p := l.add("one", store.RunConfig{})
	l.setFail(p, errors.New("no route to origin"))
	m := newMachine(t, h, l, 1)
	o := ship(t, m, p, 1)
	claim := func(check func(c crdt.Claim) bool) func() error {
		return func() error {
			cs := m.state.View().Claims(o.id)
			if len(cs) != 1 || !check(cs[0]) {
				return fmt.Errorf("%+v", cs)
			}
			return nil
		}
	}
	within(t, 20*time.Second, "fetching with a reason", claim(func(c crdt.Claim) bool {
		return c.Phase == crdt.ClaimFetching && c.Reason == "no route to origin"
	}))
	within(t, 20*time.Second, "failed", claim(func(c crdt.Claim) bool { return c.Phase == crdt.ClaimFailed }))
	l.setFail(p, nil)
	within(t, 30*time.Second, "ready after all", claim(func(c crdt.Claim) bool { return c.Ready }))
}

// A VM that runs outlives that its definition cannot be made again: its disk
// cannot.
func TestRunningVMOutlivesItsDefinition(t *testing.T) {
	h, l := newHub(), newLibrary()
	p := l.add("one", store.RunConfig{})
	m := newMachine(t, h, l, 1)
	o := ship(t, m, p, 1)
	o.waitReady(m, 1)
	first := m.vms.List()[0]
	l.setFail(p, errors.New("gone from the swarm"))
	m.shelf.drop(p)
	m.rec.Rescan(context.Background())
	m.rec.Kick()
	within(t, 20*time.Second, "the claim says why", func() error {
		if c := m.state.View().Claims(o.id)[0]; !c.Ready || !strings.Contains(c.Reason, "pack ") {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if now := m.vms.List(); len(now) != 1 || now[0].Launches != first.Launches || !now[0].StartedAt.Equal(first.StartedAt) {
		t.Errorf("the VM is %+v, was %+v", now, first)
	}
}

// A machine whose state is lost keeps its VMs, which peers or their owner may
// still know; one that learns of a deletion while it was away ends them.
func TestVMsOutliveALostState(t *testing.T) {
	h, l := newHub(), newLibrary()
	p := l.add("one", store.RunConfig{})
	m := newMachine(t, h, l, 1)
	o := ship(t, m, p, 1)
	o.waitReady(m, 1)
	m.kill()
	if err := os.RemoveAll(filepath.Join(m.dir, "state")); err != nil {
		t.Fatal(err)
	}
	m.start()
	within(t, 30*time.Second, "the VM is known to be of nothing", func() error {
		m.rec.mu.Lock()
		defer m.rec.mu.Unlock()
		if _, kept := m.rec.applied[plan.VMID(o.id, 0)]; !kept || len(m.rec.world.Nodes) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(m.dir, "vms", plan.VMID(o.id, 0))); err != nil || len(m.vms.List()) != 1 {
		t.Fatalf("VMs: %+v, %v", m.vms.List(), err)
	}
	m.rec.packs.collect(context.Background())
	if !slices.Equal(m.rec.packs.holds(), []string{p}) {
		t.Errorf("its pack is collected; kept are %v", m.rec.packs.holds())
	}
	raws, err := o.a.Delete(o.id)
	if err != nil {
		t.Fatal(err)
	}
	o.submit(m, raws)
	within(t, 20*time.Second, "the VM of what its owner has deleted ends", func() error {
		if n := len(m.vms.List()); n != 0 {
			return fmt.Errorf("%d VMs", n)
		}
		return nil
	})
}

// While nothing can be published, nothing starts, and what is to end ends.
func TestUnpublishedClaims(t *testing.T) {
	h, l := newHub(), newLibrary()
	p := l.add("one", store.RunConfig{})
	m := newMachine(t, h, l, 1)
	ended, kept := ship(t, m, p, 1), ship(t, m, p, 1)
	ended.waitReady(m, 1)
	kept.waitReady(m, 1)
	m.gate.setFail(errors.New("disk full"))
	waits := ship(t, m, p, 1)
	raws, err := ended.a.Delete(ended.id)
	if err != nil {
		t.Fatal(err)
	}
	ended.submit(m, raws)
	within(t, 20*time.Second, "one VM is left", func() error {
		if vms := m.vms.List(); len(vms) != 1 || vms[0].ID != plan.VMID(kept.id, 0) {
			return fmt.Errorf("%+v", vms)
		}
		return nil
	})
	m.gate.setFail(nil)
	waits.waitReady(m, 1)
}

// What is neither claimed, spare, leased nor pinned is collected.
func TestCollectKeepsLeases(t *testing.T) {
	h, l := newHub(), newLibrary()
	m := newMachine(t, h, l, 1)
	used, leased := l.add("used", store.RunConfig{}), l.add("leased", store.RunConfig{})
	o := ship(t, m, used, 1)
	o.waitReady(m, 1)
	if err := m.rec.Fetch(context.Background(), cidOf("leased"), nil, nil); err != nil {
		t.Fatal(err)
	}
	m.shelf.mu.Lock()
	m.shelf.here[l.add("old", store.RunConfig{})] = true
	m.shelf.mu.Unlock()
	m.rec.packs.collect(context.Background())
	if got, want := m.rec.packs.holds(), []string{used, leased}; len(got) != 2 || !slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
		t.Errorf("kept %v, want %v", got, want)
	}
	m.rec.packs.now = func() time.Duration { return boottime.Now() + 2*Lease }
	m.rec.packs.collect(context.Background())
	if got := m.rec.packs.holds(); !slices.Equal(got, []string{used}) {
		t.Errorf("kept %v after the lease, want %v", got, used)
	}
}

// The drain flag outlives a restart.
func TestDrainIsKept(t *testing.T) {
	h, l := newHub(), newLibrary()
	m := newMachine(t, h, l, 1)
	drains := func(want bool) {
		t.Helper()
		within(t, 10*time.Second, fmt.Sprintf("draining=%v", want), func() error {
			if n, ok := m.state.View().Node(m.key); !ok || n.Draining != want {
				return fmt.Errorf("%+v", n)
			}
			return nil
		})
	}
	drains(false)
	if err := m.rec.SetDraining(true); err != nil {
		t.Fatal(err)
	}
	drains(true)
	m.kill()
	m.start()
	drains(true)
	if err := m.rec.SetDraining(false); err != nil {
		t.Fatal(err)
	}
	drains(false)
}

// define maps a spec and its pack to a VM; the golden is what QEMU and the guest
// are given.
func TestDefine(t *testing.T) {
	l := newLibrary()
	s := newShelf(l)
	pack := l.add("hello-server", store.RunConfig{
		VCPU: 2, MemoryBytes: 1 << 30, DiskBytes: 10 << 30, Workdir: "/app", Entrypoint: []string{"python3", "hello.py"},
		Users:  []store.User{{Name: "bigdog", PasswordHash: "$6$x", Groups: []string{"adm"}, Sudo: true, SSHAuthorizedKeys: []string{"ssh-ed25519 A"}, DisableRoot: true}},
		Env:    []store.EnvVar{{Scope: "system", Key: "PORT", Value: "80"}, {Scope: "user:bigdog", Key: "A", Value: "b"}},
		Expose: []store.Port{{Port: 8080, Proto: "tcp", Public: true}},
		Health: &store.Health{Kind: "http", Port: 8080, Path: "/healthz", Interval: 1500, Timeout: 500, Retries: 4}, Restart: "on-failure",
	})
	s.here[pack] = true
	spec := &crdt.Spec{
		ID: "abc", Name: "web", VCPU: 2, MemoryBytes: 2 << 30, DiskBytes: 10 << 30, Env: map[string]string{"PORT": "81", "B": "c"},
		SSHKeys: []string{"ssh-ed25519 OWNER"}, Expose: []string{"8080/tcp", "9090", "bad"},
	}
	vm, err := define(context.Background(), s, spec, plan.VM{
		ID: "abc-1", Slot: plan.Slot{Instance: "abc", Slot: 1}, Pack: pack, Run: true, Incarnation: "inc", Restart: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(vm, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "vm.json")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("differs from %s:\n%s", path, got)
	}
	if err := vm.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := define(context.Background(), s, spec, plan.VM{Pack: cidOf("absent").String()}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("absent pack: %v", err)
	}
}

// The prober finds a silent node through no helper and a cut link through one.
func TestProber(t *testing.T) {
	h, l := newHub(), newLibrary()
	var ms []*machine
	for n := range byte(3) {
		ms = append(ms, newMachine(t, h, l, n+1))
	}
	state := func(of, from *machine, want string) {
		t.Helper()
		within(t, 20*time.Second, fmt.Sprintf("machine %d is %s for machine %d", of.n, want, from.n), func() error {
			if got := from.prober.Live(of.key); got != want {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	}
	state(ms[1], ms[0], "alive")
	state(ms[2], ms[0], "alive")
	ms[2].end.setCut(true)
	state(ms[2], ms[0], "dead")
	state(ms[1], ms[0], "alive")
	ms[2].end.setCut(false)
	state(ms[2], ms[0], "alive")
	if len(ms[0].prober.Dead()) != 0 {
		t.Errorf("dead: %v", ms[0].prober.Dead())
	}
}

// Contacts between the ticks, in whatever rhythm, do not keep the prober from
// learning who there is.
func TestProberLearnsPeersBetweenContacts(t *testing.T) {
	m := newMachine(t, newHub(), newLibrary(), 1)
	within(t, 20*time.Second, "a register in the view", func() error {
		if n := len(m.state.View().Nodes()); n != 1 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	for rhythm := range 16 { // contacts after the first tick, and after each other one
		first, others := rhythm/4, rhythm%4
		view := crdt.NewState(network, stmt.Key{}, crdt.NewModel()).View() // empty at the first tick
		p := NewProber(ProberConfig{Self: stmt.KeyOf(keyOf(2)), Streams: m.end, View: func() *crdt.View { return view }})
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no probe leaves
		var probes sync.WaitGroup
		for tick := range peersEvery + 1 {
			now := time.Duration(tick+1) * probeTick
			p.handle(ctx, &probes, now, live.Tick{})
			view = m.state.View()
			contacts := others
			if tick == 0 {
				contacts = first
			}
			for range contacts {
				p.handle(ctx, &probes, now, live.Contact{Key: m.key})
			}
		}
		probes.Wait()
		if got := p.Live(m.key); got != "alive" {
			t.Errorf("with %d and then %d contacts between ticks the peer is %s", first, others, got)
		}
	}
}
