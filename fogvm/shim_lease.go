package fogvm

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/formthefog/formation/fogvm/boottime"
)

// A fenced VM runs only while a lease lasts. Its shim sees to that by itself: the
// daemon that renews the lease may be dead, and the host may have slept.

// pauseLimit is how long QEMU may take to pause a VM; then it is killed. It is
// part of the margin by which a lease ends early.
const pauseLimit = 2 * time.Second

// pausedReason is what a VM says of itself while no lease lets it run.
const pausedReason = "the VM is paused: no lease lets it run"

var errNoLease = errors.New("no lease lets the VM run")

// fence is until when a VM may run; the zero value lets it.
type fence struct {
	mu    sync.Mutex
	on    bool
	until time.Duration // since boot
	news  chan struct{} // buffered: a value after each change
}

// hold moves the end of the lease; never to an earlier time.
func (f *fence) hold(until time.Duration) {
	f.mu.Lock()
	f.on, f.until = true, max(f.until, until)
	f.mu.Unlock()
	select {
	case f.news <- struct{}{}:
	default:
	}
}

func (f *fence) get() (until time.Duration, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.until, f.on
}

// check is nil while the VM may run.
func (f *fence) check() error {
	if until, on := f.get(); on && boottime.Now() >= until {
		return errNoLease
	}
	return nil
}

// hold lets the VM run until then, and shows that.
func (s *shim) hold(until time.Duration) error {
	s.fence.hold(until)
	s.update(s.showFence)
	return nil
}

func (s *shim) showFence(st *Status) { st.HeldUntil, st.Fenced = s.fence.get() }

// guard pauses a fenced machine when its lease ends and sets it going again when
// there is another, until ctx ends. A machine that it cannot pause it kills.
func (s *shim) guard(ctx context.Context, m *machine) {
	timer, err := boottime.NewTimer()
	if err != nil {
		s.log.Error("a lease cannot be watched", "error", err)
		timer = nil
	} else {
		defer timer.Close()
	}
	select {
	case <-m.greeted: // before that a fenced machine has not begun to run
	case <-ctx.Done():
		return
	}
	for {
		var fired <-chan struct{}
		if until, on := s.fence.get(); on {
			if timer == nil || timer.Set(until) != nil {
				m.kill("the VM was killed: its lease cannot be watched on this host")
				return
			}
			fired = timer.C
			s.enforce(ctx, m)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.fence.news:
		case <-fired:
		}
	}
}

// enforce has the machine run, or not, as its lease says.
func (s *shim) enforce(run context.Context, m *machine) {
	ctx, cancel := context.WithTimeout(run, pauseLimit)
	defer cancel()
	if s.fence.check() == nil {
		if !m.goOn() {
			return
		}
		if err := m.qmp.executeIf(ctx, "cont", s.fence.check); err != nil {
			s.log.Warn("the VM does not go on", "error", err)
			return
		}
		s.showPause("")
		return
	}
	err := m.qmp.execute(ctx, "stop")
	if err == nil {
		s.showPause(pausedReason)
		return
	}
	if errors.Is(err, errQMPGone) || run.Err() != nil {
		return // it has ended, or is being ended
	}
	s.log.Error("the VM cannot be paused", "error", err)
	m.kill("the VM was killed: its lease ran out, and it could not be paused")
}

// goOn says whether the machine does not run for want of a lease alone. One that
// the host's disk stopped is for keepRunning to try.
func (m *machine) goOn() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return (m.paused != "" || m.held) && m.ioError == ""
}

// kill ends QEMU at once, for a reason.
func (m *machine) kill(reason string) {
	m.mu.Lock()
	m.killed = reason
	m.mu.Unlock()
	_ = m.signal(syscall.SIGKILL) // one that is gone already is as well
}

func (m *machine) killReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.killed
}
