package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// node is one machine of the swarm, and the daemon on it while that runs.
type node struct {
	i    int
	h    *host
	args []string // of the daemon
	env  []string
	log  string // file that its daemons write to, one after the other
	*client

	key  stmt.Key
	cmd  *exec.Cmd     // nil: no daemon runs
	done chan struct{} // closed when it has ended
	// What has been done to it.
	killed  bool      // its daemon is to end, or the machine is gone
	gone    bool      // for good
	stopped bool      // it does nothing, until it is told to go on
	asleep  bool      // and its machine neither
	drains  bool      // it was told to give its replicas away
	off     time.Time // when all there was of it was killed last
	ready   bool      // it has said so since it started
	virtual []int     // machines that ran when its daemon was killed, and are to run on
	full    bool      // its disk has no room
	hadFull bool      // it had none at some time since its daemon started
}

// happening is news of a daemon.
type happening struct {
	n     *node
	of    *exec.Cmd
	ready bool  // it is; else it has ended
	err   error // with that
}

// dir is the node's folder, with its socket and its disk.
func (n *node) dir() string { return n.h.path(fmt.Sprint("node", n.i)) }

// start runs the daemon, and tells what becomes of it.
func (n *node) start(tell chan<- happening) (err error) {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }() // the daemon has its own
	// ip becomes what it runs: the process is the daemon's.
	cmd := exec.Command("ip", append([]string{"netns", "exec", n.h.ns(n.i)}, n.args...)...)
	cmd.Env, cmd.Stderr, cmd.Dir = n.env, log, n.h.dir
	// What a terminal tells the tier it does not tell the daemons.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	n.cmd, n.done, n.killed, n.ready, n.hadFull = cmd, done, false, false, n.full
	go func() {
		said := false
		for sc := bufio.NewScanner(io.LimitReader(out, 1<<20)); sc.Scan(); {
			if !said && strings.HasPrefix(sc.Text(), "ready ") {
				said = true
				tell <- happening{n: n, of: cmd, ready: true}
			}
		}
		err := cmd.Wait()
		close(done)
		tell <- happening{n: n, of: cmd, err: err}
	}()
	return nil
}

// happens takes news in; it says whether a daemon has ended that was to go on.
func (n *node) happens(h happening) (ended bool) {
	switch {
	case n.cmd != h.of:
		return false // of an earlier daemon
	case h.ready:
		n.ready = true
		return false
	}
	n.cmd, n.ready, n.stopped, n.asleep = nil, false, false, false
	return !n.killed
}

// up says whether the daemon runs and can answer.
func (n *node) up() bool { return n.cmd != nil && n.ready && !n.stopped && !n.killed }

func (n *node) signal(s syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal n%d: %w", n.i, err)
	}
	return nil
}

// kill ends the daemon as kill -9 does, and waits until it is gone.
func (n *node) kill() error {
	if n.cmd == nil {
		return nil
	}
	n.killed = true
	if err := n.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-n.done
	return nil
}

// endLimit is how long a daemon may take to end in order.
const endLimit = 2 * time.Minute

// end has the daemon end in order, within endLimit.
func (n *node) end() error {
	if n.cmd == nil {
		return nil
	}
	n.killed = true
	if err := n.signal(syscall.SIGTERM); err != nil {
		return err
	}
	limit := time.NewTimer(endLimit)
	defer limit.Stop()
	select {
	case <-n.done:
	case <-limit.C:
		return errors.Join(fmt.Errorf("n%d has not ended %v after SIGTERM", n.i, endLimit), n.kill())
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("n%d ended with %d after SIGTERM: %s", n.i, code, n.lastWords())
	}
	return nil
}

// stop has the daemon do nothing, or go on.
func (n *node) stop(on bool) error {
	if n.cmd == nil {
		return nil
	}
	s := syscall.SIGCONT
	if on {
		s = syscall.SIGSTOP
	}
	n.stopped = on
	return n.signal(s)
}

// filler is the file that takes all the room there is.
func (n *node) filler() string { return filepath.Join(n.h.disk(n.i), "filler") }

// fill leaves no room on the node's disk.
func (n *node) fill() (err error) {
	f, err := os.OpenFile(n.filler(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n.full, n.hadFull = true, true
	for block := make([]byte, 1<<20); len(block) > 0; block = block[:len(block)/2] {
		for err == nil {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		err = nil
	}
	return nil
}

// empty gives the room back.
func (n *node) empty() error {
	n.full = false
	if err := os.Remove(n.filler()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// lastWords are the last lines that the node's daemons wrote.
func (n *node) lastWords() string {
	const most, lines = 4096, 3
	raw, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(raw[max(0, len(raw)-most):]), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}
