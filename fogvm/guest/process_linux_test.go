package guest

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func me() account { return account{UID: os.Getuid(), GID: os.Getgid(), Home: "/"} }

// lockedBuffer is written by the supervisor and read by the test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// reaping is what starts children in a test, and is gone with it: two reapers
// steal each other's.
func reaping(t *testing.T) *processes {
	procs := newProcesses()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		procs.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return procs
}

// supervise runs argv under a policy to its end, or until stop returns true for
// an event and the output so far.
func supervise(t *testing.T, policy string, argv []string, stop func(last appEvent, output string) bool) (events []appEvent, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	procs := reaping(t)
	appCtx, end := context.WithCancel(ctx)
	defer end()
	var out lockedBuffer
	var mu sync.Mutex
	e := &entrypoint{procs: procs, policy: policy, env: func() []string { return []string{"PATH=" + defaultPath} }, out: &out, tail: newRing(tailBytes),
		cmd: command{argv: argv, dir: "/", as: me()},
		report: func(ev appEvent) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, ev)
		}}
	if stop != nil {
		go func() {
			for appCtx.Err() == nil {
				mu.Lock()
				met := len(events) > 0 && stop(events[len(events)-1], out.String())
				mu.Unlock()
				if met {
					end()
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
	e.run(appCtx, func() time.Duration { return 5 * time.Second })
	if ctx.Err() != nil {
		t.Fatal("supervision did not end")
	}
	mu.Lock()
	defer mu.Unlock()
	return events, out.String()
}

func TestSupervise(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("children get credentials set, which needs root, as in the guest")
	}
	t.Run("never, failing: the reason has the code and the output's end", func(t *testing.T) {
		events, out := supervise(t, RestartNever, []string{"sh", "-c", "echo one; echo two >&2; exit 3"}, nil)
		last := events[len(events)-1]
		if len(events) != 2 || !last.failed || !strings.Contains(last.reason, "exited with code 3: one | two") || out != "one\ntwo\n" {
			t.Errorf("%+v, output %q", events, out)
		}
	})
	t.Run("on-failure, succeeding: done", func(t *testing.T) {
		events, _ := supervise(t, RestartOnFailure, []string{"true"}, nil)
		if last := events[len(events)-1]; !last.done || last.failed {
			t.Errorf("%+v", events)
		}
	})
	t.Run("always: started again", func(t *testing.T) {
		events, _ := supervise(t, RestartAlways, []string{"true"}, func(e appEvent, _ string) bool { return e.restarts >= 1 })
		if len(events) < 3 || events[1].running || !strings.Contains(events[1].reason, "next start in 1s") {
			t.Errorf("%+v", events)
		}
	})
	t.Run("a signal", func(t *testing.T) {
		events, _ := supervise(t, RestartNever, []string{"sh", "-c", "kill -9 $$"}, nil)
		if last := events[len(events)-1]; !strings.Contains(last.reason, "ended by signal 9") {
			t.Errorf("%+v", events)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		events, _ := supervise(t, RestartNever, []string{"no-such-thing"}, nil)
		if last := events[len(events)-1]; !last.failed || !strings.Contains(last.reason, "not found in PATH") {
			t.Errorf("%+v", events)
		}
	})
	t.Run("stopped: SIGTERM reaches it", func(t *testing.T) {
		_, out := supervise(t, RestartAlways, []string{"sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 60 & wait; done"},
			func(_ appEvent, output string) bool { return output == "up\n" })
		if out != "up\nbye\n" {
			t.Errorf("output %q", out)
		}
	})
}

// TestReapsManyChildren: a child's status goes to its owner while others' are
// collected too.
func TestReapsManyChildren(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, as in the guest")
	}
	procs := reaping(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			_, exited, err := procs.start(command{argv: []string{"sh", "-c", "exit " + string(rune('0'+i%10))},
				env: []string{"PATH=" + defaultPath}, dir: "/", as: me(), files: []*os.File{null, null, null}})
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case s := <-exited:
				if exitCode(s) != i%10 {
					t.Errorf("child %d: code %d", i, exitCode(s))
				}
			case <-time.After(20 * time.Second):
				t.Errorf("child %d: no status", i)
			}
		})
	}
	all.Wait()
	if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("children left: %v", err)
	}
}
