package fogvm

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// shimVerb makes this test binary the shim of the VMs it starts.
const shimVerb = "fogvm-test-shim"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == shimVerb {
		if err := RunShim(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 4 && os.Args[1] == badShimVerb {
		if err := runBadShim(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 3 && os.Args[1] == renewerVerb {
		fmt.Fprintln(os.Stderr, runRenewer(os.Args[2]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func testLogger(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// eventually polls until cond is true; what is shown when it never is.
func eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// rig is one driver under test: the same suite runs on all of them.
type rig struct {
	cfg Config
	vm  VM // a VM that becomes ready, listening on port 8080
	// patience is how long a boot may take.
	patience time.Duration
	real     bool
}

func fakeRig(t testing.TB) rig {
	return rig{
		cfg: Config{Dir: t.TempDir(), Driver: DriverFake, Fake: &Fake{}, Backoff: 20 * time.Millisecond, Logger: testLogger(t)},
		vm: VM{ID: "web-0", Incarnation: "1", Run: true, Kernel: "k", Initrd: "i", Lowers: []string{"l"},
			VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 1 << 30},
		patience: 5 * time.Second,
	}
}

var guestBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "form-guest-*")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "form-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/formthefog/formation/cmd/form-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// qemuRig needs FORMATION_VM_BASE: a folder with vmlinuz, modules.cpio and
// rootfs.sqfs (the entries of a base), and layer-N.sqfs where the base itself has
// no python3 (topmost first). scripts/fixtures.sh makes one.
func qemuRig(t testing.TB) rig {
	base := os.Getenv("FORMATION_VM_BASE")
	if base == "" {
		t.Skip("real VMs: set FORMATION_VM_BASE to a folder with vmlinuz, modules.cpio and rootfs.sqfs")
	}
	binary, err := guestBinary()
	if err != nil {
		t.Fatal(err)
	}
	lowers, err := filepath.Glob(filepath.Join(base, "layer-*.sqfs")) // sorted
	if err != nil {
		t.Fatal(err)
	}
	lowers = append(lowers, filepath.Join(base, "rootfs.sqfs"))
	return rig{
		// A deep folder: longer than a unix socket's path may be.
		cfg: Config{Dir: filepath.Join(t.TempDir(), "a-data-directory-with-a-long-name", "and-another-one-below-it-so-that-sun-path-is-exceeded", "vms"),
			Driver: DriverQEMU, ShimCommand: []string{os.Args[0], shimVerb}, GuestBinary: binary,
			Backoff: 100 * time.Millisecond, Logger: testLogger(t)},
		vm: VM{ID: "web-0", Incarnation: "1", Run: true, Kernel: filepath.Join(base, "vmlinuz"),
			Initrd: filepath.Join(base, "modules.cpio"), Lowers: lowers,
			VCPU: 2, MemoryBytes: 512 << 20, DiskBytes: 1 << 30,
			Guest: guest.Config{Hostname: "web", Name: "web", Instance: "abc",
				Users:      []guest.User{{Name: "bigdog", Sudo: true, DisableRoot: true}},
				Env:        []guest.EnvVar{{Key: "GREETING", Value: "hello 'fog'"}, {Scope: "user:bigdog", Key: "BONE", Value: "two words"}},
				Workdir:    "/app",
				Entrypoint: []string{"python3", "-c", serverScript},
				Expose:     []guest.Port{{Port: 8080, Proto: "tcp"}},
			}},
		patience: 3 * time.Minute, real: true,
	}
}

// serverScript answers HTTP on 8080 with its environment, like the fake does
// with its ID.
const serverScript = `
import os, socket
s = socket.create_server(("0.0.0.0", 8080))
print("serving in", os.getcwd(), flush=True)
while True:
    c, _ = s.accept()
    c.recv(4096)
    body = ("hello from " + os.environ["FORMATION_NAME"] + "-" + os.environ["FORMATION_SLOT"] + "\n").encode()
    c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
    c.close()
`

// managed runs a Manager for the test's time.
type managed struct {
	*Manager
	stop context.CancelFunc
	done chan error
}

func (r rig) manage(t testing.TB) *managed {
	t.Helper()
	m, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &managed{Manager: m, stop: cancel, done: make(chan error, 1)}
	go func() { x.done <- m.Run(ctx) }()
	t.Cleanup(func() { x.end(t) })
	return x
}

// end stops the Manager as a crash or upgrade of formd would: VMs go on.
func (x *managed) end(t testing.TB) {
	x.stop()
	if x.done == nil {
		return
	}
	if err := <-x.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	x.done = nil
}

func (x *managed) sync(t testing.TB, vms ...VM) {
	t.Helper()
	if err := x.Sync(context.Background(), vms); err != nil {
		t.Fatal(err)
	}
}

func (x *managed) status(id string) (Status, bool) {
	for _, s := range x.List() {
		if s.ID == id {
			return s, true
		}
	}
	return Status{}, false
}

func (x *managed) await(t testing.TB, r rig, id, what string, cond func(Status) bool) Status {
	t.Helper()
	deadline := time.Now().Add(r.patience)
	for {
		s, ok := x.status(id)
		if ok && cond(s) {
			return s
		}
		if time.Now().After(deadline) {
			console, _ := os.ReadFile(filepath.Join(r.cfg.Dir, id, consoleLog))
			shim, _ := os.ReadFile(filepath.Join(r.cfg.Dir, id, shimLog))
			t.Fatalf("%s is not %s within %s: %+v\nconsole:\n%s\nshim:\n%s", id, what, r.patience, s, console, shim)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func ready(s Status) bool { return s.Phase == Running && s.Ready }
