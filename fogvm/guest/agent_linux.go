package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// agent is process 1 of a guest after boot.
type agent struct {
	log      *slog.Logger
	procs    *processes
	out      *ring // entrypoint output for the host
	statuses chan Status
	power    chan Power
	tasks    sync.WaitGroup // supervisors; they end when appCtx does
	keys     *keyring
	vault    *vault
	mesh     Mesh // nil: it has none

	appCtx  context.Context
	stopApp context.CancelFunc

	mu          sync.Mutex
	cond        condition
	hostKey     string
	meshKey     string
	meshProblem string
	grace       time.Duration
	check       *check
	stopCheck   context.CancelFunc
	recheck     *time.Timer
	environment environment
}

func newAgent(log *slog.Logger, mesh Mesh) *agent {
	a := &agent{
		log: log, mesh: mesh, procs: newProcesses(), out: newRing(LogBufferBytes),
		statuses: make(chan Status, 1), power: make(chan Power, 1), grace: 10 * time.Second,
		keys:  &keyring{write: applyKeys},
		vault: &vault{write: func(reader account, secrets []Secret) error { return writeSecrets(SecretsDir, reader, secrets) }},
	}
	a.appCtx, a.stopApp = context.WithCancel(context.Background())
	return a
}

// run serves the host until it asks for the end of this run, or the power
// button does.
func (a *agent) run(ctx context.Context) (Power, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	port, err := openPort(10 * time.Second)
	if err != nil {
		return Power{}, err
	}
	info := Info{Version: Version, Kernel: kernelRelease(), CPUs: runtime.NumCPU(), UptimeMillis: uptimeMillis()}
	go a.procs.run(ctx)
	go a.beat(ctx)
	go a.signals(ctx)
	go watchPowerButton(ctx, func() { a.requestPower(Power{}) })
	lost := make(chan error, 1)
	go func() { lost <- serve(ctx, port, info, a.statuses, a) }()
	select {
	case p := <-a.power:
		a.stop(p)
		// Give the host the last status before the channel goes down.
		a.publish()
		return p, nil
	case err := <-lost:
		// One host process owns the channel for the guest's life: without it
		// nobody can ever reach this guest again.
		a.stop(Power{})
		return Power{}, fmt.Errorf("host is gone: %w", err)
	}
}

// beat repeats the status, which shows the host that the agent lives.
func (a *agent) beat(ctx context.Context) {
	tick := time.NewTicker(StatusInterval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.publish()
		}
	}
}

// control implements handler.
func (a *agent) control(m toGuest) {
	switch {
	case m.Config != nil:
		go a.configure(*m.Config)
	case m.Authorize != nil:
		if err := a.keys.replace(*m.Authorize); err != nil {
			a.log.Error("authorize keys", "error", err)
		}
	case m.Secrets != nil:
		if err := a.vault.replace(*m.Secrets); err != nil {
			a.log.Error("secrets", "error", err)
		}
	case m.Time != 0:
		if err := stepClock(time.Unix(0, m.Time)); err != nil {
			a.log.Error("set time", "error", err)
		}
	case m.Locate != nil:
		if a.mesh != nil {
			a.mesh.Locate(*m.Locate)
		}
	case m.Power != nil:
		a.requestPower(*m.Power)
	}
}

// news implements handler.
func (a *agent) news(ctx context.Context, stream net.Conn) {
	if a.mesh == nil {
		return
	}
	if err := a.mesh.Hear(ctx, stream); err != nil && ctx.Err() == nil {
		a.log.Warn("mesh news ended", "error", err)
	}
}

func (a *agent) requestPower(p Power) {
	select {
	case a.power <- p:
	default: // one is already being carried out
	}
}

// logs implements handler.
func (a *agent) logs(ctx context.Context, w io.Writer) {
	if err := a.out.copyTo(ctx, w); err != nil && ctx.Err() == nil {
		a.log.Warn("log stream ended", "error", err)
	}
}

// configure applies the host's configuration, once per boot.
func (a *agent) configure(cfg Config) {
	a.mu.Lock()
	if a.cond.configured || a.cond.configErr != nil {
		a.mu.Unlock()
		a.log.Error("second configuration ignored")
		return
	}
	a.cond.configured = true
	a.cond.hasApp = len(cfg.Entrypoint) > 0
	a.mu.Unlock()
	if err := a.apply(cfg); err != nil {
		a.log.Error("configure", "error", err)
		a.update(func(c *condition) { c.configErr = fmt.Errorf("guest could not be configured: %w", err) })
		return
	}
	a.publish()
}

func (a *agent) apply(cfg Config) error {
	if cfg.Init != "" && cfg.Init != InitAgent {
		return fmt.Errorf("INIT %s is not supported by this agent", cfg.Init)
	}
	env, err := newEnvironment(cfg.Env)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return applyHostname(cfg) },
		applyMachineID,
		func() error { return applyUsers(cfg) },
		func() error { return applyEnvironment(cfg, env) },
		func() error { return a.keys.configure(cfg) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.environment = env
	a.mu.Unlock()
	if cfg.Mesh != nil && a.mesh != nil {
		a.tasks.Go(func() { a.joinMesh(cfg) })
	}
	if err := a.startSSH(cfg, env); err != nil {
		a.log.Warn("no ssh", "reason", err)
	}
	return a.startApp(cfg, env)
}

// joinMesh makes the guest a peer. Without the mesh it runs all the same, and says
// why it has none.
func (a *agent) joinMesh(cfg Config) {
	problem := func(text string) {
		if text != "" {
			a.log.Warn("mesh", "problem", text)
		}
		a.mu.Lock()
		a.meshProblem = ClipReason(text)
		a.mu.Unlock()
		a.publish()
	}
	key, err := a.mesh.Start(a.appCtx, cfg, problem)
	if err != nil {
		problem(err.Error())
		return
	}
	a.mu.Lock()
	a.meshKey = key
	a.mu.Unlock()
	a.publish()
}

func (a *agent) startApp(cfg Config, env environment) error {
	users, err := readAccounts()
	if err != nil {
		return err
	}
	name := cfg.EntrypointUser
	if name == "" {
		name = "root"
	}
	acc, err := users.lookup(name)
	if err != nil {
		return err
	}
	dir := cfg.Workdir
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("workdir: %w", err)
	}
	if err := a.vault.unlock(acc); err != nil {
		return err
	}
	cmd := command{argv: cfg.Entrypoint, dir: dir, as: acc}
	variables := func() []string { return env.forEntrypoint(acc, cfg, a.vault.env()...) }
	check, err := newCheck(cfg, func(ctx context.Context, argv []string) error {
		probe := cmd
		probe.argv, probe.env = argv, variables()
		return a.runCheck(ctx, probe)
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.check, a.cond.hasCheck = check, check != nil
	a.mu.Unlock()
	if len(cfg.Entrypoint) == 0 {
		a.onApp(appEvent{running: true, since: time.Now()})
		return nil
	}
	log, err := openLog("app.log")
	if err != nil {
		return err
	}
	app := &entrypoint{procs: a.procs, cmd: cmd, env: variables, policy: cfg.Restart, out: io.MultiWriter(log, a.out), tail: newRing(tailBytes), report: a.onApp}
	a.tasks.Go(func() {
		app.run(a.appCtx, func() time.Duration {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.grace
		})
	})
	return nil
}

func openLog(name string) (*RotatingFile, error) {
	const dir = "/var/log/formation"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return OpenRotatingFile(filepath.Join(dir, name), 1<<20)
}

// runCheck runs a HEALTHCHECK CMD to its end or the context's.
func (a *agent) runCheck(ctx context.Context, cmd command) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		w.Close()
		return err
	}
	cmd.files = []*os.File{null, w, w}
	pid, exited, err := a.procs.start(cmd)
	null.Close()
	w.Close()
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	tail := newRing(tailBytes)
	go func() { _, _ = io.Copy(tail, r) }() // ends when r is closed on return
	select {
	case status := <-exited:
		killGroup(pid, unix.SIGKILL)
		if code := exitCode(status); code != 0 {
			return fmt.Errorf("health check exited with code %d %s", code, lastLines(tail.last(), 2))
		}
		return nil
	case <-ctx.Done():
		killGroup(pid, unix.SIGKILL)
		<-exited
		return errors.New("health check timed out")
	}
}

// onApp takes the supervisor's news. The check runs only while the application
// does, and starts from scratch with it.
func (a *agent) onApp(e appEvent) {
	a.update(func(c *condition) {
		c.app = e
		c.checked, c.checkErr = false, nil
		if !e.running {
			c.lastExit = e.reason
		}
		if a.stopCheck != nil {
			a.stopCheck()
			a.stopCheck = nil
		}
		if !e.running || a.check == nil {
			return
		}
		ctx, cancel := context.WithCancel(a.appCtx)
		a.stopCheck = cancel
		check := a.check
		a.tasks.Go(func() {
			watchHealth(ctx, check, func(err error) {
				a.update(func(c *condition) {
					if ctx.Err() == nil {
						c.checked, c.checkErr = true, err
					}
				})
			})
		})
	})
}

// update changes the condition and publishes what follows.
func (a *agent) update(change func(*condition)) {
	a.mu.Lock()
	change(&a.cond)
	a.mu.Unlock()
	a.publish()
}

// publish puts the current status into the channel; an unsent older one is
// replaced.
func (a *agent) publish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, recheck := a.cond.verdict(time.Now())
	if s.Phase == PhaseReady {
		a.cond.wasReady = true
	}
	s.SSHHostKey, s.MeshKey, s.MeshProblem = a.hostKey, a.meshKey, a.meshProblem
	s.Reason = ClipReason(s.Reason)
	if a.recheck != nil {
		a.recheck.Stop()
	}
	if recheck > 0 {
		a.recheck = time.AfterFunc(recheck, a.publish)
	}
	select {
	case <-a.statuses:
	default:
	}
	a.statuses <- s // has room: only this function sends, under the lock
}

// stop ends the application and everything else, and puts the disk in order.
func (a *agent) stop(p Power) {
	a.update(func(c *condition) {
		c.stopping = true
		if p.GraceSeconds > 0 {
			a.grace = time.Duration(p.GraceSeconds) * time.Second
		}
	})
	a.stopApp()
	a.tasks.Wait()
	endAllProcesses(2 * time.Second)
	unix.Sync()
}

// openPort finds the control channel's device and opens it.
func openPort(limit time.Duration) (io.ReadWriteCloser, error) {
	deadline := time.Now().Add(limit)
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			data, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(data)) == PortName {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no virtio-serial port %s after %s", PortName, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var _ handler = (*agent)(nil)
