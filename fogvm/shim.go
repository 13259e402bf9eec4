package fogvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/fogvm/guest"
)

// shimReadyFD is the descriptor on which a starting shim tells its parent one
// line: "ok", or why not.
const shimReadyFD = 3

// shim is one VM's keeper.
type shim struct {
	dir      string
	spec     shimSpec
	log      *slog.Logger
	console  *guest.RotatingFile
	app      *guest.RotatingFile
	stop     chan bool // asks for the end; true skips the guest's part
	ended    chan struct{}
	patience time.Duration // with a guest that boots, all its boots together
	turn     time.Duration // how long the first of them may take; the next has twice that
	waited   time.Duration // for boots that did not come up, one after another

	mu       sync.Mutex
	status   Status
	watchers map[chan struct{}]struct{}
	agent    *guest.Conn // nil while no agent is connected
	net      *network    // nil while no machine runs
	keys     []string    // the owner's, as last authorised
	rebooted bool        // this run's end was asked for as a reboot

	fence fence
	mesh  shimMesh

	giving  sync.Mutex     // orders what is sent of secrets; before mu
	secrets []guest.Secret // as last given; never written down
	given   chan struct{}  // closed when they were given; nil: they are not waited for
}

// RunShim keeps the VM of the run directory dir until it is stopped, ends by
// itself or ctx ends; a guest's reboot is a new QEMU under the same shim. It is
// the whole body of `formd vm DIR` and expects a process of its own: it changes
// the umask, and QEMU lives only as long as the process.
func RunShim(ctx context.Context, dir string) error {
	s, closeAll, err := openShimFiles(dir)
	if err == nil {
		err = NoCore()
	}
	if err != nil {
		tellParent(err)
		return err
	}
	defer closeAll()
	listener, err := listenIn(dir, shimSocket)
	if err != nil {
		tellParent(err)
		return fmt.Errorf("shim: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serving sync.WaitGroup
	serving.Go(func() { s.serve(ctx, listener) })
	serving.Go(func() { s.watchFolder(ctx) })
	tellParent(nil)
	reason := s.run(ctx)
	s.update(func(st *Status) {
		st.Phase, st.Ready, st.Reason, st.PID, st.ShimPID, st.HeldUntil = Stopped, false, reason, 0, 0, 0
		if reason != "" {
			st.Phase = Failed
		}
	})
	close(s.ended)
	err = os.Remove(filepath.Join(dir, shimSocket))
	cancel()
	serving.Wait()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("shim: %w", err)
	}
	return nil
}

// tellParent reports the start-up's result, where a parent waits for it.
func tellParent(problem error) {
	var st unix.Stat_t
	if err := unix.Fstat(shimReadyFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return
	}
	f := os.NewFile(shimReadyFD, "ready")
	defer f.Close()
	line := "ok\n"
	if problem != nil {
		line = problem.Error() + "\n"
	}
	// A parent that died meanwhile will find the shim by its socket.
	_, _ = f.WriteString(line)
}

func openShimFiles(dir string) (*shim, func(), error) {
	syscall.Umask(0o077)
	s := &shim{dir: dir, patience: bootPatience, turn: bootTurn, stop: make(chan bool, 1), ended: make(chan struct{}), watchers: map[chan struct{}]struct{}{}}
	// A bare descriptor that nothing closes: the lock is free when, and only
	// when, the process is gone, so that who waits for it sees nothing left.
	lock, err := unix.Open(filepath.Join(dir, lockFile), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("shim: lock: %w", err)
	}
	fail := func(err error) (*shim, func(), error) {
		return nil, nil, fmt.Errorf("shim: %w", err)
	}
	if err := unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fail(fmt.Errorf("another shim runs %s: %w", dir, err))
	}
	if err := readJSONFile(filepath.Join(dir, specFile), &s.spec); err != nil {
		return fail(err)
	}
	logFile, err := guest.OpenRotatingFile(filepath.Join(dir, shimLog), 1<<20)
	if err != nil {
		return fail(err)
	}
	if s.console, err = guest.OpenRotatingFile(filepath.Join(dir, consoleLog), MaxLogBytes); err != nil {
		return fail(err)
	}
	if s.app, err = guest.OpenRotatingFile(filepath.Join(dir, appLog), MaxLogBytes); err != nil {
		return fail(err)
	}
	s.log = slog.New(slog.NewTextHandler(logFile, nil))
	s.keys = s.spec.VM.Guest.SSHKeys
	s.fence.on, s.fence.news = s.spec.VM.Fenced, make(chan struct{}, 1)
	if s.spec.VM.AwaitSecrets {
		s.given = make(chan struct{})
	}
	s.status = Status{ID: s.spec.VM.ID, Incarnation: s.spec.VM.Incarnation, Restart: s.spec.VM.Restart,
		Phase: Launching, Accel: s.spec.Accel, ShimPID: os.Getpid()}
	return s, func() {
		for _, c := range []io.Closer{s.console, s.app, logFile} {
			c.Close()
		}
	}, nil
}

// run boots the VM, again after each reboot, and returns why it ended: empty
// when it was asked to.
func (s *shim) run(ctx context.Context) (reason string) {
	for {
		s.update(func(st *Status) {
			*st = Status{ID: st.ID, Incarnation: st.Incarnation, Restart: st.Restart, Accel: st.Accel, ShimPID: st.ShimPID,
				Phase: Launching, StartedAt: time.Now()}
			s.showFence(st)
		})
		again, reason := s.boot(ctx)
		if !again {
			s.log.Info("vm ended", "reason", reason)
			return reason
		}
		s.log.Info("vm reboots")
	}
}

// boot runs one QEMU to its end.
func (s *shim) boot(ctx context.Context) (again bool, reason string) {
	vn, err := newNetwork(defaultLimits, s.spec.Egress, s.log)
	if err != nil {
		return false, err.Error()
	}
	defer vn.close()
	vn.mesh = &s.mesh
	s.mesh.plug(vn.wire)
	defer s.mesh.plug(nil)
	group := s.makeCgroup()
	defer func() {
		if err := group.remove(); err != nil {
			s.log.Warn("cgroup is left behind", "error", err)
		}
	}()
	m, err := startMachine(s.dir, s.spec, &logLines{log: s.log, source: "qemu"})
	if err != nil {
		return false, err.Error()
	}
	if err := group.enter(m.pid); err != nil {
		s.log.Warn("VM runs outside its cgroup", "error", err)
	}
	m.may = s.fence.check
	s.mu.Lock()
	s.net, s.rebooted = vn, false
	s.mu.Unlock()
	s.update(func(st *Status) { st.PID = m.pid })

	runCtx, cancel := context.WithCancel(ctx)
	consoleTail := &tailWriter{to: s.console}
	var parts sync.WaitGroup
	parts.Go(func() { _, _ = io.Copy(consoleTail, m.console) }) // ends with QEMU
	parts.Go(func() {
		if err := vn.serve(runCtx, m.nic); err != nil && runCtx.Err() == nil {
			s.log.Info("network ended", "error", err)
		}
	})
	parts.Go(func() { s.talk(runCtx, m.agent) })
	parts.Go(func() { m.keepRunning(runCtx, resumeInterval, s.showPause) })
	parts.Go(func() { s.guard(runCtx, m) })
	asked, hung, exit := s.await(ctx, m)
	agentSeen := !s.snapshot().AgentAt.IsZero()
	if agentSeen {
		s.waited = 0
	}
	s.mu.Lock()
	s.net = nil
	rebooted := s.rebooted
	s.mu.Unlock()
	cancel()
	// The console's last words are still in the socket: QEMU has closed its
	// end, so the copy ends by itself; the others are told.
	m.nic.Close()
	m.agent.Close()
	parts.Wait()
	m.close()
	switch {
	case asked:
		return false, ""
	case hung && !agentSeen && s.waited < s.patience:
		s.log.Warn("the guest did not come up; it is booted again", "after", s.waited)
		return true, ""
	case hung && !s.hasSecrets():
		return false, fmt.Sprintf("its secrets did not come within %v", s.patience)
	case hung:
		return false, fmt.Sprintf("the guest did not come up within %v", s.patience)
	case rebooted, m.shutdownReason() == "guest-reset" && agentSeen && !panicked(consoleTail.String()):
		return true, ""
	}
	return false, exitReason(m, exit, consoleTail.String())
}

// bootPatience is how long a guest may take until its agent answers, and bootTurn
// how long it has until it is booted again. A kernel that hangs in its boot does so
// for good, and mostly comes up when it is tried again (seen once in some thousand
// emulated boots); emulated and on a busy machine a healthy one takes a minute.
const (
	bootPatience = 10 * time.Minute
	bootTurn     = 90 * time.Second
)

// await waits for QEMU's exit and carries out a stop that is asked for
// meanwhile. asked: the end was wanted; hung: the guest has not come up.
func (s *shim) await(ctx context.Context, m *machine) (asked, hung bool, exit error) {
	left := s.patience - s.waited
	turn := min(left, s.turn+s.waited)
	if s.spec.VM.Fenced {
		turn = left // it boots when it may run
	}
	boot := time.NewTimer(turn)
	defer boot.Stop()
	force := false
	for waiting := true; waiting; {
		select {
		case exit = <-m.exited:
			return false, false, exit
		case force = <-s.stop:
			waiting = false
		case <-ctx.Done():
			waiting = false
		case <-boot.C:
			switch up := !s.snapshot().AgentAt.IsZero(); {
			case !up || turn == left && !s.hasSecrets():
				s.waited += turn
				return false, true, s.stopMachine(m, true)
			case !s.hasSecrets():
				boot.Reset(left - turn)
				turn = left
			}
		}
	}
	s.update(func(st *Status) { st.Phase, st.Ready = Stopping, false })
	return true, false, s.stopMachine(m, force)
}

// update changes the status, saves it and wakes the watchers; nothing happens
// when nothing changed.
func (s *shim) update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.status
	change(&s.status)
	// The console's words are the guest's too.
	s.status.Reason = guest.ClipReason(s.status.Reason)
	if s.status == before {
		return
	}
	if err := writeJSONFile(filepath.Join(s.dir, stateFile), s.status); err != nil {
		s.log.Error("state is not saved", "error", err)
	}
	for w := range s.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// folderInterval is how often a shim makes sure it still has a run directory.
const folderInterval = 5 * time.Second

// watchFolder ends a VM whose run directory was deleted under it: nobody could
// ever find that VM again, and its disk is gone.
func (s *shim) watchFolder(ctx context.Context) {
	tick := time.NewTicker(folderInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := os.Lstat(filepath.Join(s.dir, lockFile)); errors.Is(err, os.ErrNotExist) {
			s.log.Error("the run directory is gone; ending the VM")
			select {
			case s.stop <- true:
			default: // it is ending already
			}
			return
		}
	}
}

func (s *shim) snapshot() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *shim) makeCgroup() *cgroup {
	group, err := newCgroup(cgroupRoot, cgroupName(s.dir), s.spec.VM)
	if err != nil {
		s.log.Warn("VM is not confined as it should be", "error", err)
	}
	return group
}

func panicked(console string) bool { return strings.Contains(console, "Kernel panic") }

// exitReason puts into words why a VM ended that was not asked to.
func exitReason(m *machine, exit error, console string) string {
	switch reason := m.shutdownReason(); {
	case m.killReason() != "":
		return m.killReason()
	case panicked(console):
		return "the guest's kernel panicked: " + lastLine(console, "Kernel panic")
	case reason == "guest-shutdown":
		if line := lastLine(console, "level=ERROR"); line != "" {
			return "the guest powered itself off: " + line
		}
		return "the guest powered itself off"
	case reason == "guest-reset":
		return "the guest reset before its agent was up: " + lastLine(console, "")
	case exit == nil:
		return "QEMU ended"
	default:
		out := fmt.Sprintf("QEMU ended: %v", exit)
		if line := lastLine(m.stderr.String(), ""); line != "" {
			out += ": " + line
		}
		return out
	}
}

// lastLine is the last line of s that contains want and is not empty.
func lastLine(s, want string) string {
	all := strings.Split(s, "\n")
	for i := len(all) - 1; i >= 0; i-- {
		if line := strings.TrimSpace(all[i]); line != "" && strings.Contains(line, want) {
			return line
		}
	}
	return ""
}

// logLines writes what a child says into the log.
type logLines struct {
	log    *slog.Logger
	source string
}

func (l *logLines) Write(p []byte) (int, error) {
	l.log.Info("output", "of", l.source, "text", strings.TrimSpace(string(p)))
	return len(p), nil
}
