package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// exec implements handler: it runs a command over a stream of frames.
func (a *agent) exec(ctx context.Context, req ExecRequest, stream net.Conn) {
	out := &frameWriter{w: stream}
	s, err := a.startExec(req)
	if err != nil {
		// The stream may be gone already; then nobody waits for the reason.
		_ = out.write(FrameError, []byte(clip(err.Error(), maxExecError)))
		return
	}
	gone, input := make(chan struct{}), newInbox()
	go func() {
		defer close(gone)
		s.readInput(stream, input)
	}()
	go s.feed(input, out)
	code := s.copyOutput(ctx, out, gone)
	_ = out.write(FrameExit, encodeExit(code))
	s.close()
}

// execSession is one running command.
type execSession struct {
	pid    int
	exited <-chan syscall.WaitStatus
	stdin  *os.File // pipe, or the terminal
	// outputs are what to read, by frame type.
	outputs map[FrameType]*os.File
	tty     bool
}

func (a *agent) startExec(req ExecRequest) (*execSession, error) {
	users, err := readAccounts()
	if err != nil {
		return nil, err
	}
	name := req.User
	if name == "" {
		name = "root"
	}
	acc, err := users.lookup(name)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	env := a.environment.forUser(acc, req.Env...)
	a.mu.Unlock()
	dir := req.Workdir
	if dir == "" {
		dir = acc.Home
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		if req.Workdir != "" {
			return nil, fmt.Errorf("workdir %s is no folder in the guest", req.Workdir)
		}
		dir = "/"
	}
	cmd := command{argv: req.Argv, env: env, dir: dir, as: acc}
	if req.TTY {
		return a.startTTY(cmd, req.Size)
	}
	return a.startPipes(cmd)
}

func (a *agent) startPipes(cmd command) (*execSession, error) {
	var ends [3][2]*os.File // reader, writer
	closeAll := func(side ...int) {
		for _, e := range ends {
			for _, i := range side {
				if e[i] != nil {
					e[i].Close()
				}
			}
		}
	}
	for i := range ends {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(0, 1)
			return nil, err
		}
		ends[i] = [2]*os.File{r, w}
	}
	cmd.files = []*os.File{ends[0][0], ends[1][1], ends[2][1]}
	pid, exited, err := a.procs.start(cmd)
	if err != nil {
		closeAll(0, 1)
		return nil, err
	}
	for _, f := range cmd.files {
		f.Close()
	}
	return &execSession{pid: pid, exited: exited, stdin: ends[0][1],
		outputs: map[FrameType]*os.File{FrameStdout: ends[1][0], FrameStderr: ends[2][0]}}, nil
}

func (a *agent) startTTY(cmd command, size WindowSize) (*execSession, error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	if size.Rows > 0 && size.Cols > 0 {
		if err := setWindow(master, size); err != nil {
			return nil, errors.Join(err, master.Close(), slave.Close())
		}
	}
	if err := slave.Chown(cmd.as.UID, -1); err != nil {
		return nil, errors.Join(err, master.Close(), slave.Close())
	}
	cmd.env = append(cmd.env, "TERM=xterm-256color")
	cmd.files, cmd.tty = []*os.File{slave, slave, slave}, true
	pid, exited, err := a.procs.start(cmd)
	slave.Close()
	if err != nil {
		master.Close()
		return nil, err
	}
	return &execSession{pid: pid, exited: exited, stdin: master, tty: true,
		outputs: map[FrameType]*os.File{FrameStdout: master}}, nil
}

// openTerminal makes a pseudo-terminal pair, as posix_openpt(3) does.
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	var n int
	err = control(master, func(fd int) (err error) {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return fmt.Errorf("unlock terminal: %w", err)
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

func setWindow(f *os.File, s WindowSize) error {
	return control(f, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	})
}

// control runs do on f's descriptor without taking it out of the poller, as
// f.Fd would: a blocking read could then not be ended by Close.
func control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// readInput carries out the client's frames until the stream ends. It waits for
// nothing else, so that it notices that end.
func (s *execSession) readInput(stream io.Reader, input *inbox) {
	defer input.end()
	for {
		t, payload, err := ReadFrame(stream)
		if err != nil {
			return
		}
		switch t {
		case FrameStdin:
			if !input.put(payload) {
				return
			}
		case FrameEOF:
			if !s.tty {
				input.end()
			}
		case FrameResize:
			if s.tty {
				_ = setWindow(s.stdin, decodeSize(payload))
			}
		case FrameSignal:
			if sig := syscall.Signal(payload[0]); sig > 0 && sig < 32 {
				killGroup(s.pid, sig)
			}
		default:
			return
		}
	}
}

// feed gives the command its input. It ends with the input, at the latest after
// close.
func (s *execSession) feed(input *inbox, out *frameWriter) {
	input.copyTo(s.stdin, func(cost int) error { return out.write(FrameTaken, encodeTaken(cost)) })
	if !s.tty {
		s.stdin.Close()
	}
}

// copyOutput sends the command's output until it has ended and its output is
// drained, and returns its exit code. A client that goes away hangs it up.
func (s *execSession) copyOutput(ctx context.Context, out *frameWriter, gone <-chan struct{}) int {
	var busy atomic.Int32
	var copies sync.WaitGroup
	for t, f := range s.outputs {
		copies.Go(func() { copyFrames(out, t, f, &busy) })
	}
	copied := make(chan struct{})
	go func() {
		copies.Wait()
		close(copied)
	}()
	var status syscall.WaitStatus
	select {
	case status = <-s.exited:
	case <-gone:
		killGroup(s.pid, syscall.SIGHUP)
		status = stopGroup(s.pid, s.exited, 2*time.Second)
	case <-ctx.Done():
		status = stopGroup(s.pid, s.exited, 2*time.Second)
	}
	// A background child may hold the pipe open for ever: stop when the pipes
	// are empty and nobody is sending, not when the last holder ends.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for quiet := 0; quiet < 2; {
		select {
		case <-copied:
			return exitCode(status)
		case <-gone:
			return exitCode(status)
		case <-tick.C:
			if busy.Load() == 0 && s.drained() {
				quiet++
			} else {
				quiet = 0
			}
		}
	}
	return exitCode(status)
}

// copyFrames sends f's data; busy is raised while a chunk is in hand.
func copyFrames(out *frameWriter, t FrameType, f *os.File, busy *atomic.Int32) {
	buf := make([]byte, MaxFrame)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			busy.Add(1)
			werr := out.write(t, buf[:n])
			busy.Add(-1)
			if werr != nil {
				return
			}
		}
		if err != nil {
			return // end of file; EIO from a terminal whose users are gone
		}
	}
}

func (s *execSession) drained() bool {
	for _, f := range s.outputs {
		pending := 0
		err := control(f, func(fd int) (err error) {
			pending, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
			return err
		})
		if err != nil {
			continue // closed: nothing pending
		}
		if pending > 0 {
			return false
		}
	}
	return true
}

func (s *execSession) close() {
	s.stdin.Close()
	for _, f := range s.outputs {
		f.Close()
	}
}
