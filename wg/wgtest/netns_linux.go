package wgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// NetNS is a network namespace of this process's making.
type NetNS struct{ name string }

const namespaces = "/run/netns"

// AddNetNS makes a network namespace, with loopback up, and first removes those
// whose process is gone. It needs root.
func AddNetNS(ctx context.Context, name string) (*NetNS, error) {
	if err := sweep(); err != nil {
		return nil, err
	}
	n := &NetNS{name: fmt.Sprintf("formtest-%d-%s", os.Getpid(), name)}
	if _, err := output(ctx, "ip", "netns", "add", n.name); err != nil {
		return nil, err
	}
	if _, err := n.Output(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	return n, nil
}

// Remove ends the namespace; what is in use of it lives on, unreachable.
func (n *NetNS) Remove() error {
	_, err := output(context.Background(), "ip", "netns", "del", n.name)
	return err
}

var ours = regexp.MustCompile(`^formtest-(\d+)-`)

// sweep removes the namespaces of processes that were killed.
func sweep() error {
	entries, err := os.ReadDir(namespaces)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		m := ours.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		if pid, err := strconv.Atoi(m[1]); err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			// Another test may have been quicker.
			_ = (&NetNS{e.Name()}).Remove()
		}
	}
	return nil
}

func output(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Command is a command that will run in the namespace.
func (n *NetNS) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.name}, args...)...)
}

// Output runs a command in the namespace and returns what it says.
func (n *NetNS) Output(ctx context.Context, args ...string) (string, error) {
	return output(ctx, append([]string{"ip", "netns", "exec", n.name}, args...)...)
}

// Do calls f on a thread that is in the namespace: sockets and interfaces that f
// itself makes are there, also later. Goroutines that f starts are not.
func (n *NetNS) Do(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, and no other
		// comes to run in the namespace.
		runtime.LockOSThread()
		done <- n.enter(f)
	}()
	return <-done
}

func (n *NetNS) enter(f func() error) error {
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

// Connect joins two namespaces by a cable, whose ends have those names and
// addresses ("192.0.2.1/24").
func Connect(ctx context.Context, a *NetNS, nameA, addressA string, b *NetNS, nameB, addressB string) error {
	for _, c := range []struct {
		n    *NetNS
		args []string
	}{
		{a, []string{"ip", "link", "add", nameA, "type", "veth", "peer", "name", nameB, "netns", b.name}},
		{a, []string{"ip", "address", "add", addressA, "dev", nameA, "nodad"}},
		{a, []string{"ip", "link", "set", nameA, "up"}},
		{b, []string{"ip", "address", "add", addressB, "dev", nameB, "nodad"}},
		{b, []string{"ip", "link", "set", nameB, "up"}},
	} {
		if _, err := c.n.Output(ctx, c.args...); err != nil {
			return err
		}
	}
	return nil
}
