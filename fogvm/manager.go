package fogvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/fogvm/guest"
)

// Manager keeps this host's VMs as Sync wants them. Make it with New, then Run.
// Its methods may be called from any goroutine.
type Manager struct {
	cfg     Config
	log     *slog.Logger
	hyp     hypervisor
	changed chan struct{}
	wake    chan struct{} // desired changed; buffered

	mu       sync.Mutex
	desired  map[string]VM     // nil until the next Sync: VMs are left alone
	invalid  map[string]Status // wishes that cannot be carried out
	draining bool              // Shutdown: stop everything, keep disks
	workers  map[string]*worker
}

// New checks the configuration, prepares Dir, and finds the VMs that an earlier
// Manager left running, which List shows at once.
func New(cfg Config) (*Manager, error) {
	if cfg.Logger == nil {
		return nil, errors.New("fogvm: Config.Logger is nil")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil || cfg.Dir == "" {
		return nil, fmt.Errorf("fogvm: bad Dir %q", cfg.Dir)
	}
	cfg.Dir = dir
	if cfg.Backoff <= 0 {
		cfg.Backoff = time.Second
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		invalid: map[string]Status{}, workers: map[string]*worker{}}
	switch cfg.Driver {
	case "", DriverQEMU:
		m.hyp, err = newQEMU(cfg)
	case DriverFake:
		m.hyp, err = newFake(cfg.Fake)
	default:
		err = fmt.Errorf("fogvm: driver %q: want %s or %s", cfg.Driver, DriverQEMU, DriverFake)
	}
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("fogvm: %w", err)
	}
	return m, m.scan()
}

// scanAtOnce is how many run directories are looked at together: one that does
// not answer must not hold up the others, and each takes descriptors.
const scanAtOnce = 16

// scan adopts what is in Dir.
func (m *Manager) scan() error {
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return fmt.Errorf("fogvm: %w", err)
	}
	var loads errgroup.Group
	loads.SetLimit(scanAtOnce)
	for _, e := range entries {
		if e.IsDir() && idPattern.MatchString(e.Name()) {
			w := newWorker(m, e.Name())
			m.workers[w.id] = w
			loads.Go(func() error { w.load(); return nil })
		}
	}
	if err := loads.Wait(); err != nil {
		return err
	}
	inUse := map[string]bool{}
	for _, w := range m.workers {
		if w.unsure && w.have == nil {
			return nil // what it boots from is not known either: nothing is cleaned
		}
		if w.have != nil && (w.unsure || w.inst != nil) {
			inUse[w.have.Initramfs] = true
		}
	}
	if err := cleanCache(filepath.Join(m.cfg.Dir, cacheDir), inUse); err != nil {
		m.log.Warn("initramfs cache is not cleaned", "error", err)
	}
	return nil
}

// Run does the work until ctx ends, and returns nil then. VMs go on running;
// call Shutdown first to stop them.
func (m *Manager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	running := map[*worker]bool{}
	for {
		m.mu.Lock()
		for id, w := range m.workers {
			if running[w] {
				continue
			}
			running[w] = true
			group.Go(func() error {
				if w.run(ctx) {
					m.retire(id, w)
				}
				return nil
			})
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-m.wake:
		}
	}
}

// retire drops a worker whose VM is deleted, unless the VM is wanted again.
func (m *Manager) retire(id string, w *worker) {
	m.mu.Lock()
	if m.workers[id] == w {
		delete(m.workers, id)
	}
	if _, again := m.desired[id]; again && !m.draining {
		m.workers[id] = newWorker(m, id)
	}
	m.mu.Unlock()
	m.poke()
	m.notify()
}

// Sync sets what is wanted, whole: VMs that are not listed are stopped and
// deleted. It returns at once; List and Changed tell what follows. A VM to run
// that breaks VM's bounds does not hinder the others: one that is here already
// stays as the last Sync without that fault wanted it, one that is not is shown
// as Failed, both with the reason. An ID that is listed twice is an error.
func (m *Manager) Sync(ctx context.Context, desired []VM) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	want := make(map[string]VM, len(desired))
	invalid := map[string]Status{}
	for _, vm := range desired {
		if err := vm.checkWish(); err != nil {
			invalid[vm.ID] = Status{ID: vm.ID, Incarnation: vm.Incarnation, Restart: vm.Restart, Phase: Failed, Reason: err.Error()}
			continue
		}
		if _, twice := want[vm.ID]; twice {
			return fmt.Errorf("fogvm: VM %s is listed twice", vm.ID)
		}
		want[vm.ID] = vm
	}
	m.mu.Lock()
	for id := range invalid {
		before, known := m.desired[id]
		if _, valid := want[id]; known && !valid {
			want[id] = before
		}
	}
	shown := !maps.Equal(m.invalid, invalid)
	m.desired, m.invalid = want, invalid
	for id := range want {
		if m.workers[id] == nil {
			m.workers[id] = newWorker(m, id)
		}
	}
	for _, w := range m.workers {
		w.poke()
	}
	m.mu.Unlock()
	m.poke()
	if shown {
		m.notify()
	}
	return nil
}

// Hold leaves every VM as it is until the next Sync: what was wanted so far may be
// wanted no more, so none is started, stopped or deleted for it.
func (m *Manager) Hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.desired, m.invalid = nil, map[string]Status{}
}

// checkWish: what is only to be stopped, or kept so, needs no more than a name.
func (v *VM) checkWish() error {
	if !v.Run && idPattern.MatchString(v.ID) {
		return nil
	}
	return v.Validate()
}

// wants is a worker's view of what is desired of its VM. known is false while
// nothing was said yet that can be carried out.
func (m *Manager) wants(id string) (vm VM, listed, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	vm, listed = m.desired[id]
	if m.draining {
		return VM{ID: id, Incarnation: m.workers[id].snapshot().Incarnation}, true, true
	}
	_, faulty := m.invalid[id]
	return vm, listed, m.desired != nil && (listed || !faulty)
}

// List is the status of every VM here, wanted or still going, by ID.
func (m *Manager) List() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Status, 0, len(m.workers))
	for id, w := range m.workers {
		s := w.snapshot()
		if wish, faulty := m.invalid[id]; faulty {
			if s.Reason != "" {
				s.Reason += "; "
			}
			s.Reason += "left as it was: " + wish.Reason
			if s.Phase == Stopped {
				s.Phase = Failed
			}
		}
		out = append(out, s)
	}
	for id, s := range m.invalid {
		if m.workers[id] == nil {
			out = append(out, s)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// Changed delivers a value after List has changed. Values are merged, so one
// may stand for many changes; there is one channel, for one reader.
func (m *Manager) Changed() <-chan struct{} { return m.changed }

// Accel is what VMs run on ("kvm", "tcg" or "fake") and a warning for the
// operator, or "".
func (m *Manager) Accel() (name, warning string) { return m.hyp.accel() }

func (m *Manager) notify() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Shutdown stops every VM in order and keeps the disks. It returns when all
// have stopped or ctx ends, and needs Run to be running. Later Syncs only take
// note.
func (m *Manager) Shutdown(ctx context.Context) error {
	m.mu.Lock()
	m.draining = true
	for _, w := range m.workers {
		w.poke()
	}
	m.mu.Unlock()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		busy := 0
		m.mu.Lock()
		for _, w := range m.workers {
			if w.running() != nil || w.snapshot().Phase != Stopped {
				busy++
			}
		}
		m.mu.Unlock()
		if busy == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop VMs: %d still running: %w", busy, ctx.Err())
		case <-tick.C:
		}
	}
}

// find returns the worker of a VM.
func (m *Manager) find(id string) (*worker, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[id]; w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
}

func (m *Manager) live(id string) (instance, error) {
	w, err := m.find(id)
	if err != nil {
		return nil, err
	}
	if inst := w.running(); inst != nil {
		return inst, nil
	}
	return nil, fmt.Errorf("%s: %w", id, ErrNotRunning)
}

// Dial opens a TCP connection to a port of the guest, EXPOSEd or not. The
// connection supports CloseWrite.
func (m *Manager) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	inst, err := m.live(id)
	if err != nil {
		return nil, err
	}
	return inst.open(ctx, shimRequest{Op: opDial, Port: port})
}

// Exec runs a command in the guest and relays its frames (guest.RunExec) over
// conn until either end is done. It closes conn. An error means the command
// was not started; nothing was written to conn then, and conn is still open.
func (m *Manager) Exec(ctx context.Context, id string, req guest.ExecRequest, conn net.Conn) error {
	stream, err := m.OpenExec(ctx, id, req)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		conn.Close()
		stream.Close()
	})
	defer stop()
	relayExec(conn, stream)
	return nil
}

// OpenExec starts a command in the guest and returns its stream of frames, for
// callers that answer their client between start and stream.
func (m *Manager) OpenExec(ctx context.Context, id string, req guest.ExecRequest) (net.Conn, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	inst, err := m.live(id)
	if err != nil {
		return nil, err
	}
	return inst.open(ctx, shimRequest{Op: opExec, Exec: &req})
}

// RunUntil lets a fenced VM that is up run until then, counted from boot (package
// boottime); an earlier time than it has changes nothing. What paused for want of
// a lease goes on. The VM pauses by itself at that time, whether or not this
// Manager is there.
func (m *Manager) RunUntil(ctx context.Context, id string, until time.Duration) error {
	inst, err := m.live(id)
	if err != nil {
		return err
	}
	if err := inst.tell(ctx, shimRequest{Op: opHold, Until: until}); err != nil {
		return fmt.Errorf("let %s run: %w", id, err)
	}
	return nil
}

// Logs reads the entrypoint's output, or the console's, from the host's files:
// also of a VM that is stopped. The caller closes the reader.
func (m *Manager) Logs(ctx context.Context, id string, o LogOptions) (io.ReadCloser, error) {
	w, err := m.find(id)
	if err != nil {
		return nil, err
	}
	name := appLog
	if o.Console {
		name = consoleLog
	}
	return openLogs(ctx, filepath.Join(w.dir, name), o)
}
