package fogvm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/formthefog/formation/fogvm/guest"
)

// TestReasonsAreBounded: the guest writes its console, and what the console
// says becomes a reason in a signed statement of bounded size.
func TestReasonsAreBounded(t *testing.T) {
	s := &shim{dir: t.TempDir(), log: testLogger(t)}
	s.update(func(st *Status) { st.Reason = "the guest's kernel panicked: " + strings.Repeat("\x1b[31m", 4000) })
	var saved Status
	if err := readJSONFile(filepath.Join(s.dir, stateFile), &saved); err != nil {
		t.Fatal(err)
	}
	if n := len(saved.Reason); n == 0 || n > guest.MaxReason || strings.Contains(saved.Reason, "\x1b") {
		t.Errorf("a reason of %d bytes: %q", n, saved.Reason)
	}
}

// TestClimb: a rung whose act hangs, as a guest's may, or fails costs its time
// and no more.
func TestClimb(t *testing.T) {
	killed := errors.New("killed")
	for _, c := range []struct {
		name  string
		works string // the rung that ends the machine
		want  []string
		took  time.Duration
		err   error
	}{
		{"all is well", "agent", []string{"agent"}, 0, nil},
		{"nobody listens", "SIGTERM", []string{"agent", "power button", "SIGTERM"}, 17 * time.Second, nil},
		{"nothing but force", "SIGKILL", []string{"agent", "power button", "SIGTERM", "SIGKILL"}, 22 * time.Second, killed},
	} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var tried []string
			exited, over := make(chan error, 1), make(chan struct{})
			act := func(name string, otherwise func() error) func() error {
				return func() error {
					mu.Lock()
					defer mu.Unlock()
					tried = append(tried, name)
					if name == c.works {
						exited <- c.err
						return nil
					}
					mu.Unlock()
					defer mu.Lock()
					return otherwise()
				}
			}
			hang := func() error { <-over; return nil }
			fail := func() error { return errors.New("no such device") }
			s := &shim{log: testLogger(t)}
			start := time.Now()
			err := s.climb([]rung{
				{"agent", act("agent", hang), 15 * time.Second}, {"power button", act("power button", fail), 2 * time.Second},
				{"SIGTERM", act("SIGTERM", hang), 5 * time.Second}, {"SIGKILL", act("SIGKILL", hang), time.Hour},
			}, exited)
			close(over)
			synctest.Wait()
			if took := time.Since(start); !errors.Is(err, c.err) || took != c.took || !slices.Equal(tried, c.want) {
				t.Errorf("%s: %v after %s by %q", c.name, err, took, tried)
			}
		})
	}
}

// TestBrokenChannel: a guest that breaks its channel and runs on is let go of,
// and its silence is still waited for while it runs.
func TestBrokenChannel(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		hello := append([]byte("formation-guest"), guest.Version)
		if _, err := theirs.Write(hello); err != nil {
			return
		}
		if _, err := io.ReadFull(theirs, hello); err != nil {
			return
		}
		session, err := yamux.Server(theirs, nil) // with keep-alive: pings
		if err != nil {
			return
		}
		control, err := session.Accept()
		if err != nil {
			return
		}
		if _, _, err := guest.ReadFrame(control); err == nil {
			_ = guest.WriteFrame(control, guest.FrameJSON, []byte(`{"hello":{"version":1}}`))
			_, _, _ = guest.ReadFrame(control) // what the host sends to whom it has heard
			_, _ = session.Ping()
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	s := &shim{dir: t.TempDir(), log: testLogger(t)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.talk(ctx, ours)
	}()
	eventually(t, 10*time.Second, "the guest let go of", func() bool {
		_, err := s.connected()
		return err != nil && !s.snapshot().AgentAt.IsZero()
	})
	select {
	case <-done:
		t.Error("nobody notices the guest's silence")
	default:
	}
	cancel()
	<-done
}

// A guest that hangs in its boot is ended, one that came up is not.
func TestHungBootIsEnded(t *testing.T) {
	for _, up := range []bool{false, true} {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		s := &shim{
			dir: t.TempDir(), patience: 10 * time.Millisecond, turn: time.Millisecond, stop: make(chan bool, 1),
			log: slog.New(slog.DiscardHandler), watchers: map[chan struct{}]struct{}{},
		}
		s.spec.StopTimeout = time.Second
		if up {
			s.status.AgentAt = time.Now()
			time.AfterFunc(10*s.patience, func() { s.stop <- true })
		}
		asked, hung, _ := s.await(t.Context(), &machine{pid: cmd.Process.Pid, exited: exited})
		if asked != up || hung == up {
			t.Errorf("up %v: asked %v, hung %v", up, asked, hung)
		}
	}
}

// A guest that did not come up is booted again with more time, until the patience is
// spent; a fenced one, which may be paused, has all of it at once.
func TestAHungBootIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		fenced bool
		want   []time.Duration // waited for, after each boot
	}{
		{false, []time.Duration{2, 6, 10}},
		{true, []time.Duration{10}},
	} {
		s := &shim{
			dir: t.TempDir(), patience: 10 * time.Millisecond, turn: 2 * time.Millisecond, stop: make(chan bool, 1),
			log: slog.New(slog.DiscardHandler), watchers: map[chan struct{}]struct{}{},
		}
		s.spec.StopTimeout, s.spec.VM.Fenced = time.Second, c.fenced
		for _, want := range c.want {
			cmd := exec.Command("sleep", "1000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			if _, hung, _ := s.await(t.Context(), &machine{pid: cmd.Process.Pid, exited: exited}); !hung || s.waited != want*time.Millisecond {
				t.Errorf("fenced %v: hung %v after %v in all, want %v ms", c.fenced, hung, s.waited, int(want))
			}
		}
	}
}
