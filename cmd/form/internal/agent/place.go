package agent

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// maxSocket bounds the path of a unix socket, in bytes: 104 on some systems, with a
// zero at its end.
const maxSocket = 103

// Place is where the agent of a device is found: a folder that is its user's alone.
type Place struct {
	dir  string
	name string
}

// PlaceOf is the place of a device's agent: under $XDG_RUNTIME_DIR, else under the
// system's temporary folder. It makes the folder, and refuses one that others can
// write.
func PlaceOf(id Identity, getenv func(string) string) (Place, error) {
	p := Place{name: id.name()}
	private := fmt.Sprintf("form-%d", os.Getuid())
	for _, dir := range []string{filepath.Join(getenv("XDG_RUNTIME_DIR"), "form"), filepath.Join(os.TempDir(), private), filepath.Join("/tmp", private)} {
		p.dir = dir
		if filepath.IsAbs(dir) && len(p.Socket()) <= maxSocket {
			return p, p.prepare()
		}
	}
	return p, fmt.Errorf("agent: the path of its socket would be too long: %s", p.Socket())
}

// PlaceIn is the place of a device's agent in that folder.
func PlaceIn(dir string, id Identity) (Place, error) {
	p := Place{dir: dir, name: id.name()}
	return p, p.prepare()
}

// name tells devices apart.
func (i Identity) name() string {
	sum := sha256.Sum256(append(append([]byte("formation/agent/1"), i.Network[:]...), i.bytes()...))
	return hex.EncodeToString(sum[:8])
}

// prepare makes sure that the folder is this user's alone.
func (p Place) prepare() error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	info, err := os.Lstat(p.dir)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || ok && int(owner.Uid) != os.Getuid() {
		return fmt.Errorf("agent: %s is not a folder of this user's alone (mode %v)", p.dir, info.Mode())
	}
	return nil
}

// Socket is where the agent answers.
func (p Place) Socket() string { return p.File("sock") }

// File is a file of the agent's, by what its name ends in.
func (p Place) File(end string) string { return filepath.Join(p.dir, p.name+"."+end) }

// Listen makes this process the device's agent: nobody else is until it ends. The
// error wraps ErrTaken when somebody is.
func (p Place) Listen() (net.Listener, error) {
	lock, err := os.OpenFile(p.File("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrTaken, err), lock.Close())
	}
	// With the lock held, a socket that is there is a dead agent's.
	if err := os.Remove(p.Socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("agent: %w", err), lock.Close())
	}
	l, err := net.Listen("unix", p.Socket())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("agent: %w", err), lock.Close())
	}
	if err := os.Chmod(p.Socket(), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("agent: %w", err), l.Close(), lock.Close())
	}
	return locked{l, lock}, nil
}

// Gone returns when no process is the device's agent.
func (p Place) Gone(ctx context.Context) error {
	unlock, err := lockFile(ctx, p.File("lock"))
	if err != nil {
		return err
	}
	unlock()
	return nil
}

// ErrTaken: another process is the device's agent.
var ErrTaken = errors.New("agent: another one runs")

// locked is a listener with the lock that goes with it.
type locked struct {
	net.Listener
	lock *os.File
}

func (l locked) Close() error { return errors.Join(l.Listener.Close(), l.lock.Close()) }

// Ensure makes sure that an agent of this version answers, by start where none
// does. Of several forms that find none, one starts it. When it returns nil the
// agent answers.
func (p Place) Ensure(ctx context.Context, start func(context.Context) error) error {
	if _, err := StatusOf(ctx, p.Socket()); err == nil {
		return nil
	}
	unlock, err := p.turn(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = StatusOf(ctx, p.Socket())
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrVersion):
		if err := Stop(ctx, p.Socket()); err != nil {
			return err
		}
	}
	return start(ctx)
}

// turn waits until no other form starts an agent.
func (p Place) turn(ctx context.Context) (unlock func(), err error) {
	return lockFile(ctx, p.File("start"))
}

// lockFile waits until nobody else has the lock of a file, which it makes.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	got := make(chan error, 1)
	go func() { got <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }()
	select {
	case err := <-got:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("agent: lock: %w", err), f.Close())
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-got; f.Close() }() // it ends with this process at the latest
		return nil, ctx.Err()
	}
}

// maxLaunch bounds what an agent is told at its start, in bytes.
const maxLaunch = 256 << 10

// Start runs a program as an agent, detached from this process and its terminal: it
// finds launch on its standard input, as JSON, and its log is the file. Start
// returns when the program has said by [Ready] that it answers.
func Start(ctx context.Context, argv []string, launch any, logFile string) error {
	b, err := json.Marshal(launch)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(logFile), 0o700); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	defer r.Close()
	in, tell, err := os.Pipe()
	if err != nil {
		return errors.Join(fmt.Errorf("agent: %w", err), w.Close())
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, w, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	err = errors.Join(err, w.Close(), in.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("agent: start: %w", err), tell.Close())
	}
	go func() { _ = cmd.Wait() }() // while this process lives: no zombie
	_, err = tell.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		err = nil // it has ended: what it said tells why
	}
	if err = errors.Join(err, tell.Close()); err != nil {
		return fmt.Errorf("agent: start: %w", err)
	}
	said := make(chan error, 1)
	go func() { said <- ready(r, logFile) }()
	select {
	case err := <-said:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ready reads what a program said by Ready.
func ready(r io.Reader, logFile string) error {
	line, err := bufio.NewReader(io.LimitReader(r, maxLine)).ReadString('\n')
	switch word := strings.TrimSpace(line); {
	case word == "ready":
		return nil
	case word != "":
		return fmt.Errorf("agent: %s", word)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("agent: it ended at once; see %s", logFile)
	default:
		return fmt.Errorf("agent: start: %w", err)
	}
}

// Launched reads what [Start] has told this program.
func Launched(in io.Reader, launch any) error {
	b, err := io.ReadAll(io.LimitReader(in, maxLaunch+1))
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if len(b) > maxLaunch {
		return fmt.Errorf("agent: told more than %d bytes", maxLaunch)
	}
	if err := json.Unmarshal(b, launch); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

// Ready tells [Start] that this program answers, or why it cannot.
func Ready(out io.Writer, err error) error {
	word := "ready"
	if err != nil {
		word = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	_, werr := fmt.Fprintln(out, word)
	return werr
}
