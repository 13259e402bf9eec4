package fogvm

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

func TestConformanceFake(t *testing.T) { conformance(t, fakeRig) }

func TestConformanceQEMU(t *testing.T) { conformance(t, qemuRig) }

// conformance is what every driver must do.
func conformance(t *testing.T, newRig func(testing.TB) rig) {
	t.Run("a VM's life", func(t *testing.T) { testLife(t, newRig(t)) })
	t.Run("a new Manager adopts without a reboot", func(t *testing.T) { testAdopt(t, newRig(t)) })
	t.Run("a new incarnation has an empty disk", func(t *testing.T) { testIncarnation(t, newRig(t)) })
}

func testLife(t *testing.T, r rig) {
	m := r.manage(t)
	m.sync(t, r.vm)
	first := m.await(t, r, "web-0", "ready", ready)
	if first.StartedAt.IsZero() || first.ReadyAt.Before(first.StartedAt) || first.SSHHostKey == "" || first.Accel == "" {
		t.Errorf("incomplete status: %+v", first)
	}

	t.Run("sync again does nothing", func(t *testing.T) {
		m.sync(t, r.vm)
		if s := m.await(t, r, "web-0", "ready", ready); s.PID != first.PID || !s.StartedAt.Equal(first.StartedAt) {
			t.Errorf("restarted: %+v, was %+v", s, first)
		}
	})
	t.Run("dial", func(t *testing.T) {
		if got := get(t, m, "web-0", 8080); !strings.HasPrefix(got, "hello from web-0") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("exec", func(t *testing.T) {
		out, code := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"echo", "hello"}})
		if code != 0 || !strings.Contains(out, "hello") {
			t.Errorf("code %d, output %q", code, out)
		}
	})
	t.Run("logs", func(t *testing.T) {
		eventually(t, 20*time.Second, "entrypoint output in the log", func() bool {
			rc, err := m.Logs(context.Background(), "web-0", LogOptions{Tail: 5})
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			data, err := io.ReadAll(rc)
			return err == nil && len(data) > 0
		})
	})
	t.Run("unknown", func(t *testing.T) {
		if _, err := m.Dial(context.Background(), "nobody-0", 80); !errors.Is(err, ErrNotFound) {
			t.Errorf("dial: %v", err)
		}
	})
	t.Run("stop keeps the disk", func(t *testing.T) {
		stopped := r.vm
		stopped.Run = false
		m.sync(t, stopped)
		m.await(t, r, "web-0", "stopped", func(s Status) bool { return s.Phase == Stopped && s.PID == 0 })
		if _, err := m.Dial(context.Background(), "web-0", 8080); !errors.Is(err, ErrNotRunning) {
			t.Errorf("dial: %v", err)
		}
		if info, err := os.Stat(filepath.Join(r.cfg.Dir, "web-0", diskFile)); err != nil || info.Size() != int64(r.vm.DiskBytes) {
			t.Errorf("disk: %v %v", info, err)
		}
		m.sync(t, r.vm)
		m.await(t, r, "web-0", "ready", ready)
	})
	t.Run("restart", func(t *testing.T) {
		again := r.vm
		again.Restart++
		again.MemoryBytes += 1 << 20
		before, _ := m.status("web-0")
		m.sync(t, again)
		s := m.await(t, r, "web-0", "ready again", func(s Status) bool { return ready(s) && s.Restart == again.Restart })
		if !s.StartedAt.After(before.StartedAt) {
			t.Errorf("not restarted: %+v", s)
		}
		if before.Size != sizeOf(r.vm) || s.Size != sizeOf(again) {
			t.Errorf("%+v became %+v", before.Size, s.Size)
		}
		if s.SSHHostKey != before.SSHHostKey && r.real {
			t.Error("host key changed: the disk was not kept")
		}
	})
	t.Run("delete leaves nothing", func(t *testing.T) {
		m.sync(t)
		eventually(t, r.patience, "VM gone", func() bool { _, ok := m.status("web-0"); return !ok })
		if _, err := os.Stat(filepath.Join(r.cfg.Dir, "web-0")); !os.IsNotExist(err) {
			t.Errorf("run directory: %v", err)
		}
		if left := processesNaming(t, r.cfg.Dir); len(left) > 0 {
			t.Errorf("processes left: %v", left)
		}
	})
}

func testAdopt(t *testing.T, r rig) {
	m := r.manage(t)
	m.sync(t, r.vm)
	before := m.await(t, r, "web-0", "ready", ready)
	m.end(t)
	again := r.manage(t)
	if s, ok := again.status("web-0"); !ok || s.PID != before.PID || !s.Ready || s.Size != sizeOf(r.vm) {
		t.Fatalf("not adopted at once: %+v", s)
	}
	if got := get(t, again, "web-0", 8080); !strings.HasPrefix(got, "hello") {
		t.Errorf("got %q", got)
	}
	again.sync(t, r.vm)
	if s := again.await(t, r, "web-0", "ready", ready); s.PID != before.PID || !s.StartedAt.Equal(before.StartedAt) {
		t.Errorf("rebooted: %+v, was %+v", s, before)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := again.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if s, ok := again.status("web-0"); !ok || s.Phase != Stopped {
		t.Errorf("after Shutdown: %+v", s)
	}
}

func testIncarnation(t *testing.T, r rig) {
	m := r.manage(t)
	m.sync(t, r.vm)
	before := m.await(t, r, "web-0", "ready", ready)
	next := r.vm
	next.Incarnation = "2"
	m.sync(t, next)
	after := m.await(t, r, "web-0", "ready as 2", func(s Status) bool { return ready(s) && s.Incarnation == "2" })
	if after.SSHHostKey == before.SSHHostKey {
		t.Error("same host key: the disk was not made anew")
	}
	m.sync(t)
	eventually(t, r.patience, "VM gone", func() bool { return len(m.List()) == 0 })
}

// get asks a guest by HTTP through Dial.
func get(t testing.TB, m *managed, id string, port int) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return m.Dial(ctx, id, port) }}, Timeout: 30 * time.Second}
	resp, err := client.Get("http://guest/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// exec runs a command and returns stdout and stderr together.
func (x *managed) exec(t testing.TB, id string, req guest.ExecRequest) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, server := net.Pipe()
	failed := make(chan error, 1)
	go func() {
		err := x.Exec(ctx, id, req, server)
		if err != nil {
			server.Close()
		}
		failed <- err
	}()
	var out strings.Builder
	code, err := guest.RunExec(ctx, client, guest.ExecIO{Stdout: &out, Stderr: &out})
	if execErr := <-failed; execErr != nil {
		t.Fatal(execErr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}

// processesNaming lists live processes whose command line names s.
func processesNaming(t testing.TB, s string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(data), s) {
			out = append(out, filepath.Dir(f)+": "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return out
}
