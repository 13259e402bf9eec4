package proc

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/regions"
)

// rooted skips what needs root, and what else the tier needs.
func rooted(t *testing.T) {
	t.Helper()
	if err := able(Tier); err != nil {
		t.Skip(err)
	}
}

// asleep is a process that does nothing, of a run if that is not nil.
func asleep(t *testing.T, of *host, before ...string) *exec.Cmd {
	t.Helper()
	args := append(before, "sleep", "600")
	cmd := exec.Command(args[0], args[1:]...)
	if of != nil {
		cmd.Env = append(os.Environ(), mark+"="+of.id)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone
		_ = cmd.Wait()         // it was killed
	})
	return cmd
}

// made is what a process's run has on this machine, until the test ends.
func made(t *testing.T, pid, nodes int, l *lines) *host {
	t.Helper()
	h, err := named(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		h.mustLeave(t)
	})
	if err := h.make(t.Context(), nodes, diskSize, l); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) mustLeave(t *testing.T, want ...string) {
	t.Helper()
	left, err := h.left()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(left, "\n")
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("no word of %s in what is left:\n%s", w, text)
		}
	}
	if len(want) == 0 && len(left) > 0 {
		t.Errorf("left:\n%s", text)
	}
}

// Everything that a run makes is seen, is left alone for as long as the run's own
// process lives, and removed by the next run once it has been killed: also what the
// dead run's processes have made and hold.
func TestWhatAKilledRunLeavesIsRemoved(t *testing.T) {
	rooted(t)
	owner := asleep(t, nil)
	h := made(t, owner.Process.Pid, 2, nil)
	asleep(t, h)                                                    // somewhere on the machine
	asleep(t, h, "ip", "netns", "exec", h.ns(1))                    // on a node
	asleep(t, h, "sh", "-c", "cd "+h.disk(0)+"; exec \"$@\"", "sh") // whose folder is in use
	inner := filepath.Join(h.disk(1), "inner")
	if err := errors.Join(os.Mkdir(inner, 0o700), syscall.Mount("formsim", inner, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	all := []string{"process", "sleep 600", "mount " + h.disk(0), "mount " + inner, "network namespace " + h.ns(-1), "network namespace " + h.ns(1), "folder " + h.dir}
	h.mustLeave(t, all...)

	if swept, err := sweep(t.Context()); err != nil || len(swept) > 0 && strings.Contains(strings.Join(swept, " "), h.id) {
		t.Fatalf("its process lives, and what it has was removed: %v, %v", swept, err)
	}
	h.mustLeave(t, all...)

	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // it was killed
	swept, err := sweep(t.Context())
	if err != nil || !strings.Contains(strings.Join(swept, " "), h.id) {
		t.Fatalf("swept %v, %v", swept, err)
	}
	h.mustLeave(t)
}

// A number that another process has by now does not keep what a dead one has left.
func TestAbandoned(t *testing.T) {
	self, err := named(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	part := strings.Split(self.id, "-")
	for _, c := range []struct {
		id   string
		want bool
	}{
		{self.id, false},
		{self.id + "-switch", false},
		{"formsim-00000000-" + part[2] + "-" + part[3], true}, // before the machine was started
		{part[0] + "-" + part[1] + "-" + part[2] + "-1", true},
		{part[0] + "-" + part[1] + "-4194305-1", true}, // more than a number can be
		{"formtest-1-x", false},
		{"somebody-elses", false},
	} {
		if got, err := abandoned(c.id); err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", c.id, got, err, c.want)
		}
	}
}

// Nodes reach each other, over the kernel's bridge and over a wire; a wall keeps out
// whom it says, and no other.
func TestNodesAreApart(t *testing.T) {
	rooted(t)
	for name, l := range map[string]*lines{"bridge": nil, "wire": {at: []int{0, 17, 0}, duplicate: 0.1, damage: 0.01}} {
		t.Run(name, func(t *testing.T) { apart(t, l) })
	}
}

func apart(t *testing.T, l *lines) {
	h := made(t, os.Getpid(), 3, l)
	ping := func(from, to int, more ...string) (string, error) {
		args := slices.Concat([]string{"netns", "exec", h.ns(from), "ping", "-n", "-W", "1"}, more, []string{address(to).String()})
		out, err := exec.Command("ip", args...).Output()
		return string(out), err
	}
	reaches := func(from, to int) bool { // one in a hundred is damaged
		_, err := ping(from, to, "-c", "3", "-i", "0.2")
		return err == nil
	}
	has := func(n int, w wall) {
		t.Helper()
		if err := command(t.Context(), w.rules(), "ip", "netns", "exec", h.ns(n), "nft", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	if !reaches(0, 1) || !reaches(1, 2) || !reaches(2, 2) {
		t.Fatal("they do not reach each other")
	}
	if l != nil {
		out, err := ping(0, 1, "-c", "60", "-i", "0.05")
		at := strings.LastIndex(out, "rtt min/avg/max/mdev = ")
		if err != nil || at < 0 {
			t.Fatalf("%v: %s", err, out)
		}
		least, err := time.ParseDuration(strings.Split(strings.Fields(out[at:])[3], "/")[0] + "ms")
		if want := regions.RoundTrip(0, 17); err != nil || least < want {
			t.Errorf("an answer took %v (%v), and takes %v at least", least, err, want)
		}
		if !strings.Contains(out, "DUP!") {
			t.Errorf("none came twice:\n%s", out)
		}
	}
	has(1, wall{from: []netip.Addr{address(0)}})
	if reaches(0, 1) || !reaches(2, 1) {
		t.Error("n0 is to be kept out, and n2 is not")
	}
	has(1, wall{loss: 1})
	if reaches(2, 1) || !reaches(1, 1) {
		t.Error("all is lost but what a node says to itself")
	}
	has(1, wall{})
	if !reaches(0, 1) {
		t.Error("the wall is still there")
	}
}
