package wgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace of a test.
type Namespace struct {
	name string
	tb   testing.TB
}

const namespaces = "/run/netns"

// NewNamespace makes a network namespace, with loopback up, that ends with the
// test, and first removes those of tests whose process is gone. It skips the test
// without root.
func NewNamespace(tb testing.TB, name string) *Namespace {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("network namespaces need root")
	}
	sweep(tb)
	n := &Namespace{name: fmt.Sprintf("formtest-%d-%s", os.Getpid(), name), tb: tb}
	command(tb, "ip", "netns", "add", n.name)
	tb.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", n.name).CombinedOutput(); err != nil {
			tb.Errorf("remove namespace %s: %v: %s", n.name, err, out)
		}
	})
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

var ours = regexp.MustCompile(`^formtest-(\d+)-`)

// sweep removes the namespaces of processes that were killed.
func sweep(tb testing.TB) {
	entries, err := os.ReadDir(namespaces)
	if err != nil {
		return // there was none yet
	}
	for _, e := range entries {
		m := ours.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			if out, err := exec.Command("ip", "netns", "del", e.Name()).CombinedOutput(); err != nil {
				tb.Logf("remove namespace %s of a test that was killed: %v: %s", e.Name(), err, out)
			}
		}
	}
}

func command(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Command is a command that will run in the namespace.
func (n *Namespace) Command(args ...string) *exec.Cmd {
	return exec.CommandContext(n.tb.Context(), "ip", append([]string{"netns", "exec", n.name}, args...)...)
}

// Run runs a command in the namespace and returns what it says; failing fails the
// test.
func (n *Namespace) Run(args ...string) string {
	n.tb.Helper()
	out, err := n.Command(args...).CombinedOutput()
	if err != nil {
		n.tb.Fatalf("%s: %s: %v: %s", n.name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Do calls f on a thread that is in the namespace: sockets and interfaces that f
// itself makes are there, also later. Goroutines that f starts are not.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, and no other
		// comes to run in the namespace.
		runtime.LockOSThread()
		done <- n.enter(f)
	}()
	return <-done
}

func (n *Namespace) enter(f func() error) error {
	fd, err := unix.Open(filepath.Join(namespaces, n.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	return f()
}

// Link joins two namespaces by a cable, whose ends have those names and addresses
// ("192.0.2.1/24").
func Link(a *Namespace, nameA, addressA string, b *Namespace, nameB, addressB string) {
	a.tb.Helper()
	a.Run("ip", "link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", b.name)
	for _, end := range []struct {
		n             *Namespace
		name, address string
	}{{a, nameA, addressA}, {b, nameB, addressB}} {
		end.n.Run("ip", "address", "add", end.address, "dev", end.name, "nodad")
		end.n.Run("ip", "link", "set", end.name, "up")
	}
}
