package fogvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// worker brings one VM to what is wanted and keeps it there. Its run loop is
// the only one that starts, stops and deletes.
type worker struct {
	m    *Manager
	id   string
	dir  string
	wake chan struct{}

	// Only the run loop touches these.
	have     *shimSpec       // what dir was last prepared for; nil: nothing
	unsure   bool            // have and inst may not be all that is in dir: see find
	keys     *[]string       // the owner's, as the running guest has them; nil: not known
	secrets  *[]guest.Secret // as the running guest has them; nil: not known
	failures int             // ends in a row that nobody asked for
	notUntil time.Time       // back-off

	mu     sync.Mutex
	inst   instance // nil: not running
	status Status   // but for Size
	size   Size     // of have
}

// A run this long counts as a success for the back-off.
const steadyRun = time.Minute

func newWorker(m *Manager, id string) *worker {
	return &worker{m: m, id: id, dir: filepath.Join(m.cfg.Dir, id), wake: make(chan struct{}, 1), unsure: true,
		status: Status{ID: id, Phase: Launching}}
}

// loadTimeout bounds what one VM may add to the start of a Manager. A VM that
// takes longer is found by the first step.
const loadTimeout = 5 * time.Second

// load shows what an earlier Manager left in the run directory.
func (w *worker) load() {
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	err := w.find(ctx)
	w.status = Status{ID: w.id, Phase: Stopped}
	if w.have != nil {
		w.status.Incarnation, w.status.Restart = w.have.VM.Incarnation, w.have.VM.Restart
	}
	if err != nil {
		w.m.log.Error("run directory", "instance", w.id, "error", err)
		w.status.Phase, w.status.Reason = Launching, err.Error()
	}
	if w.inst == nil {
		return
	}
	w.status.Phase = Launching
	if s, ok := <-w.inst.watch(ctx); ok {
		w.status = s
	}
	w.m.log.Info("adopted a running VM", "instance", w.id, "pid", w.status.PID)
}

// find learns what the run directory was prepared for and adopts the VM that
// runs there. Only a successful look tells that there is nothing: until then
// the VM may be well and its disk worth keeping.
func (w *worker) find(ctx context.Context) error {
	if !w.unsure {
		return nil
	}
	spec := new(shimSpec)
	readErr := readJSONFile(filepath.Join(w.dir, specFile), spec)
	switch {
	case readErr == nil:
		w.prepared(spec)
	case errors.Is(readErr, fs.ErrNotExist):
		w.prepared(nil)
		readErr = nil
	}
	err := errors.Join(readErr, w.adopt(ctx))
	w.unsure = err != nil
	return err
}

// adopt takes over what runs in the run directory, if anything does.
func (w *worker) adopt(ctx context.Context) error {
	if w.running() != nil {
		return nil
	}
	inst, err := w.m.hyp.adopt(ctx, w.dir)
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a running VM: %w", err)
	}
	w.setInstance(inst)
	return nil
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) running() instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inst
}

func (w *worker) snapshot() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Size = w.size
	return s
}

func sizeOf(vm VM) Size {
	return Size{VCPU: vm.VCPU, MemoryBytes: vm.MemoryBytes, DiskBytes: vm.DiskBytes}
}

// prepared takes note of what dir is prepared for; nil: nothing.
func (w *worker) prepared(spec *shimSpec) {
	w.have = spec
	var size Size
	if spec != nil {
		size = sizeOf(spec.VM)
	}
	w.mu.Lock()
	differs := w.size != size
	w.size = size
	w.mu.Unlock()
	if differs {
		w.m.notify()
	}
}

func (w *worker) set(change func(*Status)) {
	w.mu.Lock()
	before := w.status
	change(&w.status)
	differs := w.status != before
	w.mu.Unlock()
	if differs {
		w.m.notify()
	}
}

func (w *worker) setInstance(inst instance) {
	w.keys, w.secrets = nil, nil
	w.mu.Lock()
	w.inst = inst
	w.mu.Unlock()
}

// run works until ctx ends (false) or the VM is deleted (true).
func (w *worker) run(ctx context.Context) (deleted bool) {
	var watch watched
	defer func() { watch.end() }()
	for {
		gone, retry, err := w.step(ctx)
		if ctx.Err() != nil {
			return false
		}
		if gone {
			return true
		}
		if err != nil {
			w.m.log.Warn("VM", "instance", w.id, "error", err)
		}
		// Events of an instance that was stopped here mean nothing any more.
		watch.follow(ctx, w.running())
		var timer <-chan time.Time
		if retry > 0 {
			timer = time.After(retry)
		}
		select {
		case <-ctx.Done():
			return false
		case <-w.wake:
		case <-timer:
		case s, ok := <-watch.events:
			if ok {
				w.follow(s)
				continue
			}
			watch.end()
			w.ended(ctx)
		}
	}
}

// watched is the event stream of one instance.
type watched struct {
	inst   instance
	events <-chan Status
	cancel context.CancelFunc
}

// follow switches to inst, which may be nil.
func (x *watched) follow(ctx context.Context, inst instance) {
	if x.inst == inst {
		return
	}
	x.end()
	if inst != nil {
		watchCtx, cancel := context.WithCancel(ctx)
		*x = watched{inst: inst, events: inst.watch(watchCtx), cancel: cancel}
	}
}

func (x *watched) end() {
	if x.cancel != nil {
		x.cancel()
	}
	*x = watched{}
}

// follow takes the instance's report over.
func (w *worker) follow(s Status) {
	w.set(func(st *Status) {
		s.ID, s.Launches = w.id, st.Launches
		if s.Incarnation == "" {
			s.Incarnation, s.Restart = st.Incarnation, st.Restart
		}
		*st = s
	})
}

// ended: the VM's events have ended, though nobody asked here for its end.
func (w *worker) ended(ctx context.Context) {
	if ctx.Err() != nil {
		return // events end with the Manager too
	}
	w.setInstance(nil)
	w.unsure = true
	if err := w.adopt(ctx); err != nil {
		w.m.log.Error("VM lost sight of", "instance", w.id, "error", err)
		return
	}
	if w.running() != nil {
		return // only the connection was lost
	}
	s := w.snapshot()
	if !s.StartedAt.IsZero() && time.Since(s.StartedAt) > steadyRun {
		w.failures = 0
	}
	w.failed(s.Reason)
}

// backOff counts a failure and returns how long to wait after it.
func (w *worker) backOff() time.Duration {
	w.failures++
	delay := w.m.cfg.Backoff << min(w.failures-1, 6)
	w.notUntil = time.Now().Add(delay)
	return delay
}

// failed shows a failure and sets the back-off.
func (w *worker) failed(reason string) time.Duration {
	delay := w.backOff()
	if reason == "" {
		reason = "the VM ended"
	}
	w.set(func(st *Status) {
		st.Phase, st.Ready, st.PID, st.ShimPID, st.HeldUntil = Failed, false, 0, 0, 0
		st.Reason = reason
	})
	return delay
}

// step does one thing towards what is wanted. retry > 0 asks to be called again
// after that time at the latest.
func (w *worker) step(ctx context.Context) (gone bool, retry time.Duration, err error) {
	want, listed, known := w.m.wants(w.id)
	if !known {
		return false, 0, nil
	}
	if !listed {
		if err := w.wipe(ctx); err != nil {
			return false, w.m.cfg.Backoff, err
		}
		return true, 0, nil
	}
	if wait := time.Until(w.notUntil); want.Run && w.unsure && wait > 0 {
		return false, wait, nil
	}
	if err := w.find(ctx); err != nil {
		if w.running() != nil {
			return false, w.backOff(), err // how it does is its own word
		}
		return false, w.failed(err.Error()), err
	}
	if !want.Run {
		if err := w.stop(ctx); err != nil {
			return false, w.m.cfg.Backoff, err
		}
		w.set(func(st *Status) {
			*st = Status{ID: w.id, Phase: Stopped, Incarnation: want.Incarnation, Restart: want.Restart, Launches: st.Launches}
		})
		w.failures, w.notUntil = 0, time.Time{}
		return false, 0, nil
	}
	if w.have != nil && w.have.VM.Incarnation != want.Incarnation {
		if err := w.wipe(ctx); err != nil {
			return false, w.m.cfg.Backoff, err
		}
		w.failures, w.notUntil = 0, time.Time{}
	}
	if w.running() != nil && w.have != nil {
		if w.have.VM.Restart == want.Restart {
			if err := errors.Join(w.authorize(ctx, want.Guest.SSHKeys), w.giveSecrets(ctx, want.Secrets)); err != nil {
				return false, w.m.cfg.Backoff, err
			}
			return false, 0, nil
		}
		if err := w.stop(ctx); err != nil {
			return false, w.m.cfg.Backoff, err
		}
		w.failures, w.notUntil = 0, time.Time{}
	}
	if wait := time.Until(w.notUntil); wait > 0 {
		return false, wait, nil
	}
	if err := w.start(ctx, want); err != nil {
		return false, w.failed(err.Error()), err
	}
	if err := w.giveSecrets(ctx, want.Secrets); err != nil {
		return false, w.m.cfg.Backoff, err
	}
	return false, 0, nil
}

// start launches what does not run; find has told so.
func (w *worker) start(ctx context.Context, want VM) error {
	w.set(func(st *Status) {
		accel, _ := w.m.hyp.accel()
		*st = Status{ID: w.id, Phase: Launching, Incarnation: want.Incarnation, Restart: want.Restart,
			Accel: accel, Launches: st.Launches + 1, StartedAt: time.Now()}
	})
	if w.have == nil {
		// Whatever is there is of an incarnation nobody knows any more.
		if err := w.wipe(ctx); err != nil {
			return fmt.Errorf("start VM: %w", err)
		}
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return fmt.Errorf("start VM: %w", err)
	}
	inst, err := w.m.hyp.start(ctx, w.dir, want)
	if err != nil {
		w.unsure = true // how far it came is not known
		return fmt.Errorf("start VM: %w", err)
	}
	w.prepared(&shimSpec{VM: want})
	w.setInstance(inst)
	w.keys = &want.Guest.SSHKeys
	w.m.log.Info("VM started", "instance", w.id, "vcpu", want.VCPU, "memory", want.MemoryBytes, "disk", want.DiskBytes)
	return nil
}

// stop ends the VM if it runs.
func (w *worker) stop(ctx context.Context) error {
	inst := w.running()
	if inst == nil {
		return nil
	}
	w.set(func(st *Status) { st.Phase, st.Ready = Stopping, false })
	if err := inst.stop(ctx, false); err != nil {
		return fmt.Errorf("stop VM: %w", err)
	}
	w.setInstance(nil)
	w.m.log.Info("VM stopped", "instance", w.id)
	return nil
}

// wipe stops what runs in the run directory and removes it. What it was
// prepared for need not be known.
func (w *worker) wipe(ctx context.Context) error {
	if w.unsure {
		if err := w.adopt(ctx); err != nil {
			return fmt.Errorf("delete VM: %w", err)
		}
	}
	if err := w.stop(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(w.dir); err != nil {
		return fmt.Errorf("delete VM: %w", err)
	}
	w.prepared(nil)
	w.unsure = false
	return nil
}

// authorize brings the owner's keys into the running guest, unless it is known to
// have them: what an earlier Manager gave it is not written down.
func (w *worker) authorize(ctx context.Context, keys []string) error {
	if w.keys != nil && slices.Equal(*w.keys, keys) {
		return nil
	}
	if err := w.running().tell(ctx, shimRequest{Op: opAuthorize, Keys: keys}); err != nil {
		return fmt.Errorf("authorize keys: %w", err)
	}
	w.keys = &keys
	return nil
}

// giveSecrets brings the secrets into the running guest, unless it is known to
// have them, or they are not known.
func (w *worker) giveSecrets(ctx context.Context, secrets []guest.Secret) error {
	if secrets == nil || w.secrets != nil && guest.EqualSecrets(*w.secrets, secrets) {
		return nil
	}
	if err := w.running().tell(ctx, shimRequest{Op: opSecrets, Secrets: secrets}); err != nil {
		return fmt.Errorf("give secrets: %w", err)
	}
	w.secrets = &secrets
	return nil
}
