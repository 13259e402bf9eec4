package fogvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// qemuHypervisor runs each VM under a shim process.
type qemuHypervisor struct {
	cfg     Config
	log     *slog.Logger
	accels  string
	warning string
}

func newQEMU(cfg Config) (*qemuHypervisor, error) {
	if len(cfg.ShimCommand) == 0 || cfg.GuestBinary == "" {
		return nil, errors.New("fogvm: the QEMU driver needs ShimCommand and GuestBinary")
	}
	if cfg.QEMU == "" {
		cfg.QEMU = "qemu-system-x86_64"
	}
	if cfg.StopTimeout <= 0 {
		cfg.StopTimeout = 20 * time.Second
	}
	if err := sweepCgroups(cgroupRoot, time.Now()); err != nil {
		cfg.Logger.Warn("cgroups are left behind", "error", err)
	}
	q := &qemuHypervisor{cfg: cfg, log: cfg.Logger}
	uid, gid, err := q.credentials(cfg.Dir)
	if err != nil {
		return nil, err
	}
	q.accels, q.warning, err = detectAccel(cfg.Accel, func() error { return tryKVM(cfg.QEMU, uid, gid) })
	return q, err
}

func (q *qemuHypervisor) accel() (string, string) { return q.accels, q.warning }

func (q *qemuHypervisor) start(ctx context.Context, dir string, vm VM) (instance, error) {
	binary, err := exec.LookPath(q.cfg.QEMU)
	if err != nil {
		return nil, fmt.Errorf("%w (hint: install qemu-system-x86)", err)
	}
	var image string
	prepare, prepareCtx := errgroup.WithContext(ctx)
	prepare.Go(func() error { return makeDisk(prepareCtx, filepath.Join(dir, diskFile), vm.DiskBytes) })
	prepare.Go(func() (err error) {
		image, err = initramfs(filepath.Join(filepath.Dir(dir), cacheDir), q.cfg.GuestBinary, vm.Initrd)
		return err
	})
	if err := prepare.Wait(); err != nil {
		return nil, err
	}
	uid, gid, err := q.credentials(dir)
	if err != nil {
		return nil, err
	}
	spec := shimSpec{VM: vm, QEMU: binary, Accel: q.accels, Initramfs: image, UID: uid, GID: gid, StopTimeout: q.cfg.StopTimeout, Egress: q.cfg.Egress}
	if err := saveJSONFile(filepath.Join(dir, specFile), spec); err != nil {
		return nil, err
	}
	if err := q.launch(ctx, dir); err != nil {
		return nil, err
	}
	return q.instance(dir, spec), nil
}

// launch starts a shim of its own session and waits until it listens.
func (q *qemuHypervisor) launch(ctx context.Context, dir string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("launch shim: %w", err)
	}
	defer r.Close()
	out, err := os.OpenFile(filepath.Join(dir, "shim.out"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		w.Close()
		return fmt.Errorf("launch shim: %w", err)
	}
	defer out.Close()
	argv := append(append([]string{}, q.cfg.ShimCommand...), dir)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{w} // shimReadyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("launch shim: %w", err)
	}
	go func() {
		// How it ended is in its state file; this only reaps it.
		_ = cmd.Wait()
	}()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := r.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return fmt.Errorf("launch shim: %w", err)
	}
	line, err := io.ReadAll(io.LimitReader(r, 4<<10))
	if string(line) == "ok\n" {
		return nil
	}
	killErr := cmd.Process.Kill()
	if errors.Is(killErr, os.ErrProcessDone) {
		killErr = nil
	}
	text := strings.TrimSpace(string(line))
	if text == "" {
		said, readErr := os.ReadFile(out.Name())
		text = lastLine(string(bytes.TrimSpace(said)), "")
		err = errors.Join(err, readErr)
	}
	return errors.Join(fmt.Errorf("launch shim: it did not start: %s", text), err, killErr)
}

func (q *qemuHypervisor) adopt(ctx context.Context, dir string) (instance, error) {
	c, err := askShim(ctx, dir, shimRequest{Op: opStatus})
	if err == nil {
		c.Close()
		var spec shimSpec
		if err := readJSONFile(filepath.Join(dir, specFile), &spec); err != nil {
			q.log.Warn("a running VM's definition", "dir", dir, "error", err)
		}
		return q.instance(dir, spec), nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := q.bury(ctx, dir, err); err != nil {
		return nil, err
	}
	return nil, ErrNotRunning
}

// askShim is openShim with patience: a shim that lives is asked again, since it
// may be starting, or starved. One that lets two questions wait is given up, and
// so is one that refuses for longer than a question may wait.
func askShim(ctx context.Context, dir string, req shimRequest) (*lineConn, error) {
	for last := time.Now().Add(req.timeout() * 3 / 2); ; {
		c, err := openShim(ctx, dir, req)
		if err == nil || time.Now().After(last) || shimGone(dir) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// bury removes what is left of a shim that gave no answer because of cause. The
// lock tells one that is dead from one that is mute; that one is of no use to
// anybody, and its VM ends with it.
func (q *qemuHypervisor) bury(ctx context.Context, dir string, cause error) error {
	alive, err := shimAlive(dir)
	if err != nil {
		return errors.Join(cause, err)
	}
	if alive {
		for _, ours := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS} {
			if errors.Is(cause, ours) {
				return cause // it was not even asked
			}
		}
		if err := killShim(ctx, dir); err != nil {
			return errors.Join(fmt.Errorf("a shim holds %s and does not answer: %w", dir, cause), err)
		}
		q.log.Warn("killed a shim that did not answer", "dir", dir, "error", cause)
	}
	return q.forget(dir)
}

// killTimeout is how long a killed shim may take to be gone.
const killTimeout = 10 * time.Second

// killShim ends the shim that holds dir and waits until it is gone.
func killShim(ctx context.Context, dir string) error {
	var last Status
	if err := readJSONFile(filepath.Join(dir, stateFile), &last); err != nil {
		return err
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", last.ShimPID))
	if err != nil || !bytes.Contains(cmdline, []byte("\x00"+dir+"\x00")) {
		return fmt.Errorf("process %d is not the shim of %s", last.ShimPID, dir)
	}
	if err := syscall.Kill(last.ShimPID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return waitShimGone(ctx, dir)
}

// waitShimGone waits for the end of a shim that is about to end.
func waitShimGone(ctx context.Context, dir string) error {
	for !shimGone(dir) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// shimAlive: the lock is held by a live process. Only a lock that is free, or
// not there, says that it is not; an error says nothing.
func shimAlive(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a shim: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil || errors.Is(err, unix.EWOULDBLOCK) {
		return err != nil, nil
	}
	return false, fmt.Errorf("look for a shim: %w", err)
}

// shimGone: it is certain that no shim holds dir.
func shimGone(dir string) bool {
	alive, err := shimAlive(dir)
	return err == nil && !alive
}

// forget cleans up after a shim that is dead, however it died.
func (q *qemuHypervisor) forget(dir string) error {
	var errs []error
	var last Status
	if err := readJSONFile(filepath.Join(dir, stateFile), &last); err == nil && last.PID != 0 {
		errs = append(errs, endStray(last.PID, last.ID))
	}
	for _, name := range []string{shimSocket} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	var spec shimSpec
	if err := readJSONFile(filepath.Join(dir, specFile), &spec); err == nil {
		// Re-made with the same name, the cgroup of a dead shim can be removed.
		group, err := newCgroup(cgroupRoot, cgroupName(dir), spec.VM)
		if err == nil || len(group.folders) > 0 {
			errs = append(errs, group.remove())
		}
	}
	return errors.Join(errs...)
}

// endStray kills a QEMU that outlived its shim: the parent-death signal makes
// that all but impossible, so the process is identified with care.
func endStray(pid int, id string) error {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte("\x00guest="+id+"\x00")) {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end stray QEMU %d: %w", pid, err)
	}
	return nil
}

// firstVMUser is the lowest numeric user of VMs: above what people and
// containers use. No passwd entry is needed.
const firstVMUser = 1_900_000_000

// credentials are QEMU's user and group; zero without root.
func (q *qemuHypervisor) credentials(dir string) (uid, gid uint32, err error) {
	if os.Geteuid() != 0 {
		return 0, 0, nil
	}
	if q.cfg.User == "" {
		// One number per run directory: a VM that breaks out cannot touch the next.
		sum, err := strconv.ParseUint(cgroupName(dir)[:7], 16, 32)
		if err != nil {
			return 0, 0, err
		}
		id := firstVMUser + uint32(sum%100_000_000)
		return id, id, nil
	}
	u, g, both := strings.Cut(q.cfg.User, ":")
	if !both {
		g = u
	}
	un, err1 := strconv.ParseUint(u, 10, 32)
	gn, err2 := strconv.ParseUint(g, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("VM user %q: want uid or uid:gid: %w", q.cfg.User, err)
	}
	return uint32(un), uint32(gn), nil
}

// shimInstance is the Manager's handle of a VM under a shim.
type shimInstance struct {
	q         *qemuHypervisor
	dir       string
	stopLimit time.Duration
}

// stopSlack is what a stop may take beyond the guest's time: the shim's other
// means of ending QEMU, each with a wait of its own.
const stopSlack = 15 * time.Second

func (q *qemuHypervisor) instance(dir string, spec shimSpec) *shimInstance {
	return &shimInstance{q: q, dir: dir, stopLimit: max(q.cfg.StopTimeout, spec.StopTimeout) + stopSlack}
}

func (i *shimInstance) watch(ctx context.Context) <-chan Status {
	out := make(chan Status)
	go func() {
		defer close(out)
		// Only the lock tells that a shim is gone: a connection may break, or
		// be refused, while it lives.
		for !shimGone(i.dir) {
			if c, err := openShim(ctx, i.dir, shimRequest{Op: opStatus}); err == nil {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				i.follow(ctx, c, out)
				stop()
				c.Close()
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		// The shim is gone. If it ended in order its last word is on disk.
		last := Status{Phase: Failed, Reason: "the VM's shim died"}
		var saved Status
		if err := readJSONFile(filepath.Join(i.dir, stateFile), &saved); err == nil {
			if saved.ShimPID == 0 {
				last = saved
			} else {
				saved.Phase, saved.Ready, saved.Reason, saved.HeldUntil = Failed, false, last.Reason, 0
				last = saved
			}
		}
		select {
		case out <- last:
		case <-ctx.Done():
		}
	}()
	return out
}

func (i *shimInstance) follow(ctx context.Context, c *lineConn, out chan<- Status) {
	for {
		var s Status
		if err := c.readLine(&s); err != nil {
			return
		}
		if s.ShimPID == 0 {
			return // the end; read from disk by the caller
		}
		select {
		case out <- s:
		case <-ctx.Done():
			return
		}
	}
}

func (i *shimInstance) open(ctx context.Context, req shimRequest) (net.Conn, error) {
	return openShim(ctx, i.dir, req)
}

func (i *shimInstance) tell(ctx context.Context, req shimRequest) error {
	c, err := openShim(ctx, i.dir, req)
	if err != nil {
		return err
	}
	return c.Close()
}

// stop gives the shim its time; then it is killed, and its QEMU with it.
func (i *shimInstance) stop(ctx context.Context, force bool) error {
	limited, cancel := context.WithTimeout(ctx, i.stopLimit)
	defer cancel()
	err := i.askToStop(limited, force)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return i.q.bury(ctx, i.dir, err)
}

func (i *shimInstance) askToStop(ctx context.Context, force bool) error {
	c, err := askShim(ctx, i.dir, shimRequest{Op: opStop, Force: force})
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var one [1]byte
	if _, err := c.Read(one[:]); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	// The socket closes a moment before the process is gone.
	return waitShimGone(ctx, i.dir)
}
