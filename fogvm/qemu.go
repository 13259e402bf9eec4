package fogvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine is one run of QEMU: from start to exit, one guest boot.
type machine struct {
	pid     int
	agent   net.Conn // the host's end of the control channel
	nic     net.Conn
	console net.Conn
	qmp     *qmpClient
	exited  <-chan error // delivers QEMU's exit once
	stderr  *tailWriter

	pauses  chan struct{} // buffered: a value after each STOP event
	greeted chan struct{} // closed when the monitor takes commands, or will not
	may     func() error  // nil while the machine may run

	mu       sync.Mutex
	shutdown string // reason of QMP's SHUTDOWN event
	paused   string // why; empty while it runs
	held     bool   // started paused, and has not run yet
	killed   string // why it was killed here
	ioError  string // the last BLOCK_IO_ERROR event since it ran
}

// startMachine launches QEMU. The calling process must stay alive: QEMU gets
// SIGKILL when it ends.
func startMachine(dir string, spec shimSpec, stderr io.Writer) (*machine, error) {
	var inherited, ours []*os.File
	closeFiles := func(files []*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	defer func() { closeFiles(inherited) }()
	// QEMU's descriptors are 3, 4, … in the order of inherit.
	inherit := func(f *os.File) int {
		inherited = append(inherited, f)
		return 2 + len(inherited)
	}
	var fd descriptors
	for _, into := range []*int{&fd.qmp, &fd.console, &fd.agent, &fd.nic} {
		mine, theirs, err := socketPair()
		if err != nil {
			closeFiles(ours)
			return nil, err
		}
		ours = append(ours, mine)
		*into = inherit(theirs)
	}
	defer func() { closeFiles(ours) }()
	open := func(into *int, path string, flag int, readable bool) error {
		f, err := os.OpenFile(path, flag, 0)
		if err == nil && readable && spec.UID != 0 {
			f, err = readableByAll(f)
		}
		if err != nil {
			return fmt.Errorf("open for QEMU: %w", err)
		}
		*into = inherit(f)
		return nil
	}
	fd.lowers = make([]int, len(spec.VM.Lowers))
	err := errors.Join(
		open(&fd.kernel, spec.VM.Kernel, os.O_RDONLY, true),
		open(&fd.initrd, spec.Initramfs, os.O_RDONLY, true),
		open(&fd.disk, filepath.Join(dir, diskFile), os.O_RDWR, false),
	)
	for i, path := range spec.VM.Lowers {
		err = errors.Join(err, open(&fd.lowers[i], path, os.O_RDONLY, false))
	}
	if err != nil {
		return nil, err
	}
	m := &machine{
		stderr: &tailWriter{to: stderr}, pauses: make(chan struct{}, 1), greeted: make(chan struct{}),
		may: func() error { return nil }, held: spec.VM.Fenced,
	}
	conns := make([]net.Conn, len(ours))
	for i, f := range ours {
		if conns[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
	}
	m.qmp = newQMP(conns[0], m.onEvent)
	m.console, m.agent, m.nic = conns[1], conns[2], conns[3]
	argv := qemuArgv(spec.QEMU, spec.Accel, spec.VM, fd)
	if err := m.start(argv, inherited, spec); err != nil {
		m.close()
		return nil, err
	}
	go m.greet()
	return m, nil
}

// greet opens the monitor for commands; QEMU runs whether or not it succeeds.
func (m *machine) greet() {
	defer close(m.greeted)
	go m.qmp.run()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// A failure shows again at the first command that matters.
	_ = m.qmp.execute(ctx, "qmp_capabilities")
}

// shutdownReason is QEMU's word for why it ended: "guest-reset",
// "guest-shutdown", "host-signal", …; empty when it did not say.
func (m *machine) shutdownReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shutdown
}

func (m *machine) start(argv []string, files []*os.File, spec shimSpec) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C"}
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = m.stderr, m.stderr
	cmd.SysProcAttr = qemuUser(spec.UID, spec.GID, spec.Accel)
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = syscall.SIGKILL, true
	started := make(chan error, 1)
	exited := make(chan error, 1)
	go func() {
		// The parent-death signal follows the *thread* that forked, so that
		// thread must live exactly as long as QEMU.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("start QEMU: %w", err)
			return
		}
		started <- nil
		exited <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return err
	}
	m.pid, m.exited = cmd.Process.Pid, exited
	return nil
}

func (m *machine) signal(sig syscall.Signal) error {
	err := syscall.Kill(m.pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func (m *machine) close() {
	for _, c := range []net.Conn{m.agent, m.nic, m.console} {
		c.Close()
	}
	m.qmp.conn.Close()
}

func socketPair() (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "shim"), os.NewFile(uintptr(fds[1]), "qemu"), nil
}

// readableByAll returns f, or a copy of it in memory when other users may not
// read it: QEMU opens the kernel and the initramfs anew through /proc, under
// its own user. It takes f over.
func readableByAll(f *os.File) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if info.Mode()&0o004 != 0 {
		return f, nil
	}
	defer f.Close()
	fd, err := unix.MemfdCreate("boot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	out := os.NewFile(uintptr(fd), "boot")
	if _, err := io.Copy(out, f); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

// tailWriter passes everything on and remembers the end of it.
type tailWriter struct {
	mu   sync.Mutex
	to   io.Writer
	tail []byte
}

const tailSize = 2 << 10

func (t *tailWriter) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tail = append(t.tail, p...)
	if over := len(t.tail) - tailSize; over > 0 {
		t.tail = append(t.tail[:0], t.tail[over:]...)
	}
	return t.to.Write(p)
}

func (t *tailWriter) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.tail)
}
