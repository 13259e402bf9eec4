package fogvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// badShimVerb makes this test binary a shim that holds its run directory and is
// of no use: "mute" takes no connection, "stubborn" answers and does not stop.
const badShimVerb = "fogvm-test-bad-shim"

func runBadShim(kind, dir string) error {
	l, err := holdFolder(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := writeJSONFile(filepath.Join(dir, stateFile), Status{ID: "bad-0", ShimPID: os.Getpid()}); err != nil {
		return err
	}
	fmt.Println("up")
	if kind == "stubborn" {
		go answerAll(l)
	}
	_, err = io.Copy(io.Discard, os.Stdin) // until the test ends
	return err
}

// holdFolder takes the lock and listens, as a shim does.
func holdFolder(dir string) (net.Listener, error) {
	fd, err := unix.Open(filepath.Join(dir, lockFile), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	return listenIn(dir, shimSocket)
}

// answerAll says yes to every request and does nothing.
func answerAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		lc := newLineConn(c)
		var req shimRequest
		if err := lc.readLine(&req); err == nil {
			_ = lc.writeLine(shimReply{})
		}
	}
}

func startBadShim(t *testing.T, kind string) (dir string, exited <-chan error) {
	t.Helper()
	dir = t.TempDir()
	cmd := exec.Command(os.Args[0], badShimVerb, kind, dir)
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() { stdin.Close() })
	return dir, done
}

func quickShims(t *testing.T, d time.Duration) *qemuHypervisor {
	before := shimTimeout
	shimTimeout = d
	t.Cleanup(func() { shimTimeout = before })
	return &qemuHypervisor{log: slog.New(slog.DiscardHandler)}
}

func killed(t *testing.T, dir string, exited <-chan error) {
	t.Helper()
	select {
	case err := <-exited:
		if err == nil || err.Error() != "signal: killed" {
			t.Errorf("shim ended: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the shim lives on")
	}
	if _, err := os.Stat(filepath.Join(dir, shimSocket)); !os.IsNotExist(err) {
		t.Errorf("stale socket: %v", err)
	}
}

// TestMuteShimIsKilled: in the end, and not by who has no time to ask twice.
func TestMuteShimIsKilled(t *testing.T) {
	q := quickShims(t, 200*time.Millisecond)
	t.Run("adopt", func(t *testing.T) {
		dir, exited := startBadShim(t, "mute")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := q.adopt(ctx, dir); !errors.Is(err, context.DeadlineExceeded) || shimGone(dir) {
			t.Errorf("in a hurry: %v; gone %v", err, shimGone(dir))
		}
		start := time.Now()
		if _, err := q.adopt(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d < 2*shimTimeout {
			t.Errorf("given up after %s", d)
		}
		killed(t, dir, exited)
	})
	t.Run("stop", func(t *testing.T) {
		dir, exited := startBadShim(t, "mute")
		if err := q.instance(dir, shimSpec{}).stop(t.Context(), false); err != nil {
			t.Error(err)
		}
		killed(t, dir, exited)
	})
}

func TestStubbornShimIsKilledAfterItsTime(t *testing.T) {
	q := quickShims(t, 5*time.Second)
	dir, exited := startBadShim(t, "stubborn")
	inst, err := q.adopt(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	shim := inst.(*shimInstance)
	if shim.stopLimit <= stopSlack-time.Second {
		t.Errorf("limit %s", shim.stopLimit)
	}
	shim.stopLimit = 300 * time.Millisecond
	start := time.Now()
	if err := shim.stop(t.Context(), false); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d < shim.stopLimit {
		t.Errorf("killed after %s", d)
	}
	killed(t, dir, exited)
}

// TestLateShimIsAdopted: a shim that listens only a while after it took its lock
// is asked again.
func TestLateShimIsAdopted(t *testing.T) {
	q := quickShims(t, 5*time.Second)
	dir := t.TempDir()
	l, err := holdFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), os.Remove(filepath.Join(dir, shimSocket))); err != nil {
		t.Fatal(err)
	}
	late := make(chan net.Listener, 1)
	time.AfterFunc(200*time.Millisecond, func() {
		l, err := listenIn(dir, shimSocket)
		if err != nil {
			t.Error(err)
			return
		}
		late <- l
		answerAll(l)
	})
	if _, err := q.adopt(t.Context(), dir); err != nil {
		t.Error(err)
	}
	(<-late).Close()
}

// TestUncertainShim: what cannot be looked at is not taken for dead, and nothing
// is killed or cleaned for this process's own lack of descriptors.
func TestUncertainShim(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := shimAlive(file); err == nil || shimGone(file) {
		t.Errorf("got %v; gone %v", err, shimGone(file))
	}
	if !shimGone(filepath.Join(filepath.Dir(file), "nothing")) {
		t.Error("a shim in no folder")
	}
	q := quickShims(t, time.Second)
	dir, _ := startBadShim(t, "stubborn")
	if err := q.bury(t.Context(), dir, fmt.Errorf("dial: %w", syscall.EMFILE)); !errors.Is(err, syscall.EMFILE) || shimGone(dir) {
		t.Errorf("got %v; gone %v", err, shimGone(dir))
	}
}

// failingListener has no descriptor for the first connections.
type failingListener struct {
	net.Listener
	left atomic.Int32
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestShimServesAfterAcceptFailed(t *testing.T) {
	dir := t.TempDir()
	inner, err := listenIn(dir, shimSocket)
	if err != nil {
		t.Fatal(err)
	}
	l := &failingListener{Listener: inner}
	l.left.Store(3)
	s := &shim{log: slog.New(slog.DiscardHandler), watchers: map[chan struct{}]struct{}{}, ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		s.serve(ctx, l)
		close(served)
	}()
	c, err := openShim(t.Context(), dir, shimRequest{Op: opStatus})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	cancel()
	<-served
}
