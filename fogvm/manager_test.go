package fogvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDeadVMIsRelaunchedWithBackoff(t *testing.T) {
	r := fakeRig(t)
	m := r.manage(t)
	m.sync(t, r.vm)
	m.await(t, r, "web-0", "ready", ready)
	for n := 2; n <= 3; n++ {
		if !r.cfg.Fake.Kill("web-0", "pulled the plug") {
			t.Fatal("not running")
		}
		m.await(t, r, "web-0", fmt.Sprintf("launched %d times", n), func(s Status) bool { return ready(s) && s.Launches == n })
	}
}

func TestFailedStartSaysWhyAndIsRetried(t *testing.T) {
	r := fakeRig(t)
	starts := 0
	r.cfg.Fake.Script = func(VM) FakeRun {
		if starts++; starts < 3 {
			return FakeRun{StartError: errors.New("no room")}
		}
		return FakeRun{}
	}
	m := r.manage(t)
	m.sync(t, r.vm)
	m.await(t, r, "web-0", "failed for its reason", func(s Status) bool { return s.Phase == Failed && strings.Contains(s.Reason, "no room") })
	m.await(t, r, "web-0", "ready", ready)
}

func TestInvalidVMDoesNotHinderOthers(t *testing.T) {
	r := fakeRig(t)
	m := r.manage(t)
	bad := r.vm
	bad.ID, bad.VCPU = "bad-0", 0
	m.sync(t, bad, r.vm)
	m.await(t, r, "web-0", "ready", ready)
	if s, ok := m.status("bad-0"); !ok || s.Phase != Failed || !strings.Contains(s.Reason, "vCPU") {
		t.Errorf("got %+v", s)
	}
	if err := m.Sync(context.Background(), []VM{r.vm, r.vm}); err == nil {
		t.Error("one ID twice is accepted")
	}
}

// TestFaultyWishLeavesTheVMAlone: an owner's slip must not cost the disk, in this
// Manager or the next, and must not stand in the way of stopping or deleting.
func TestFaultyWishLeavesTheVMAlone(t *testing.T) {
	r := fakeRig(t)
	m := r.manage(t)
	m.sync(t, r.vm)
	before := m.await(t, r, "web-0", "ready", ready)
	faulty := r.vm
	faulty.MemoryBytes, faulty.Restart = 64<<20, 1
	check := func(m *managed) {
		t.Helper()
		m.sync(t, faulty)
		s := m.await(t, r, "web-0", "ready, with a reason", func(s Status) bool { return ready(s) && strings.Contains(s.Reason, "memory") })
		if !s.StartedAt.Equal(before.StartedAt) || s.Restart != before.Restart {
			t.Errorf("got %+v, was %+v", s, before)
		}
	}
	check(m)
	m.end(t)
	m = r.manage(t)
	check(m)
	m.sync(t, r.vm)
	if s := m.await(t, r, "web-0", "ready", ready); s.Reason != "" || !s.StartedAt.Equal(before.StartedAt) {
		t.Errorf("after the remedy: %+v", s)
	}
	check(m)
	faulty.Run = false
	m.sync(t, faulty)
	m.await(t, r, "web-0", "stopped", func(s Status) bool { return s.Phase == Stopped && s.Reason == "" })
	if _, err := os.Stat(filepath.Join(r.cfg.Dir, "web-0", diskFile)); err != nil {
		t.Error(err)
	}
	faulty.Run = true
	m.sync(t, faulty)
	m.await(t, r, "web-0", "failed", func(s Status) bool { return s.Phase == Failed && strings.Contains(s.Reason, "memory") })
	m.sync(t)
	eventually(t, r.patience, "unlisted VM gone", func() bool { return len(m.List()) == 0 })
}

func TestUnhealthyVMStaysUp(t *testing.T) {
	r := fakeRig(t)
	r.cfg.Fake.Script = func(VM) FakeRun { return FakeRun{Unhealthy: "database is down"} }
	m := r.manage(t)
	m.sync(t, r.vm)
	s := m.await(t, r, "web-0", "unhealthy", func(s Status) bool { return s.Phase == Unhealthy })
	if s.Ready || s.Reason != "database is down" || s.Launches != 1 {
		t.Errorf("got %+v", s)
	}
}

// TestAdoptedVMsAreLeftAloneUntilTheFirstSync: a formd that has not yet loaded
// its state must not stop what runs.
func TestAdoptedVMsAreLeftAloneUntilTheFirstSync(t *testing.T) {
	r := fakeRig(t)
	m := r.manage(t)
	m.sync(t, r.vm)
	before := m.await(t, r, "web-0", "ready", ready)
	m.end(t)
	again := r.manage(t)
	if s, ok := again.status("web-0"); !ok || !s.StartedAt.Equal(before.StartedAt) {
		t.Errorf("got %+v", s)
	}
	again.sync(t)
	eventually(t, r.patience, "unlisted VM gone", func() bool { return len(again.List()) == 0 })
}

func TestUnknownLeftoversAreNotReused(t *testing.T) {
	r := fakeRig(t)
	stray := filepath.Join(r.cfg.Dir, "web-0", "upper")
	if err := os.MkdirAll(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	m := r.manage(t)
	m.sync(t, r.vm)
	m.await(t, r, "web-0", "ready", ready)
	if _, err := os.Stat(stray); !os.IsNotExist(err) {
		t.Errorf("a folder of an unknown incarnation is still there: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := fakeRig(t).cfg
	for name, change := range map[string]func(*Config){
		"no logger":      func(c *Config) { c.Logger = nil },
		"no dir":         func(c *Config) { c.Dir = "" },
		"unknown driver": func(c *Config) { c.Driver = "xen" },
		"no shim":        func(c *Config) { c.Driver = DriverQEMU },
		"unknown accel": func(c *Config) {
			c.Driver, c.Accel, c.ShimCommand, c.GuestBinary = DriverQEMU, "hvf", []string{"x"}, "y"
		},
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestConverges: after any sequence of wishes, crashes and Manager restarts, the
// last wish is what runs.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		r := fakeRig(t)
		r.cfg.Dir, r.cfg.Backoff = dir, time.Millisecond
		m := r.manage(t)
		defer func() { m.end(t) }()
		wish := map[string]VM{}
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			id := rapid.SampledFrom([]string{"a-0", "b-0", "c-1"}).Draw(rt, "id")
			vm, wanted := wish[id]
			if !wanted {
				vm = r.vm
				vm.ID = id
			}
			switch rapid.IntRange(0, 6).Draw(rt, "what") {
			case 0:
				delete(wish, id)
			case 1:
				vm.Run = !vm.Run
				wish[id] = vm
			case 2:
				vm.Incarnation += "x"
				wish[id] = vm
			case 3:
				vm.Restart++
				wish[id] = vm
			case 4:
				r.cfg.Fake.Kill(id, "crash")
			case 5:
				m.end(t)
				m = r.manage(t)
			default:
				wish[id] = vm
			}
			var list []VM
			for _, v := range wish {
				list = append(list, v)
			}
			m.sync(t, list...)
		}
		matches := func() bool {
			list := m.List()
			if len(list) != len(wish) {
				return false
			}
			for _, s := range list {
				v, ok := wish[s.ID]
				if !ok || s.Incarnation != v.Incarnation || s.Restart != v.Restart || v.Run != ready(s) || !v.Run && s.Phase != Stopped {
					return false
				}
			}
			return true
		}
		deadline := time.Now().Add(10 * time.Second)
		for !matches() {
			if time.Now().After(deadline) {
				rt.Fatalf("wish %+v\nlist %+v", wish, m.List())
			}
			time.Sleep(time.Millisecond)
		}
	})
}
