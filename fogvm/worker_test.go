package fogvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// failing returns a fault that fails op the first n times.
func failing(op string, n int32) func(string, string) error {
	var left atomic.Int32
	left.Store(n)
	return func(o, _ string) error {
		if o == op && left.Add(-1) >= 0 {
			return context.DeadlineExceeded
		}
		return nil
	}
}

// TestSlowShimIsNotRebooted: a VM that was not found at the first look, or lost
// sight of, is the wanted one and is taken over as it runs.
func TestSlowShimIsNotRebooted(t *testing.T) {
	t.Run("when a Manager starts", func(t *testing.T) {
		r := fakeRig(t)
		m := r.manage(t)
		m.sync(t, r.vm)
		before := m.await(t, r, "web-0", "ready", ready)
		m.end(t)
		r.cfg.Fake.fault = failing("adopt", 3)
		m = r.manage(t)
		if s, ok := m.status("web-0"); !ok || s.Incarnation != r.vm.Incarnation || s.Phase == Stopped {
			t.Errorf("at the start: %+v", s)
		}
		m.sync(t, r.vm)
		if s := m.await(t, r, "web-0", "ready", ready); !s.StartedAt.Equal(before.StartedAt) || s.Launches != 0 {
			t.Errorf("rebooted: %+v, was %+v", s, before)
		}
	})
	t.Run("when its events break off", func(t *testing.T) {
		r := fakeRig(t)
		m := r.manage(t)
		m.sync(t, r.vm)
		before := m.await(t, r, "web-0", "ready", ready)
		m.end(t)
		var adopts, watches atomic.Int32
		r.cfg.Fake.fault = func(op, _ string) error {
			// New adopts and looks once, then Run watches.
			if n := adopts.Load(); op == "watch" && watches.Add(1) == 1 || op == "adopt" && adopts.Add(1) > 1 && n < 3 {
				return errors.New("broken")
			}
			return nil
		}
		m = r.manage(t)
		m.sync(t, r.vm)
		var restarts int
		s := m.await(t, r, "web-0", "seen again", func(s Status) bool {
			restarts++
			for _, vm := range r.cfg.Fake.vms {
				vm.set(func(s *Status) { s.Restarts = restarts })
			}
			return ready(s) && s.Restarts > 0 && adopts.Load() > 3
		})
		if !s.StartedAt.Equal(before.StartedAt) || s.Launches != 0 {
			t.Errorf("rebooted: %+v, was %+v", s, before)
		}
	})
	t.Run("when it is to be stopped", func(t *testing.T) {
		r := fakeRig(t)
		m := r.manage(t)
		m.sync(t, r.vm)
		m.await(t, r, "web-0", "ready", ready)
		m.end(t)
		r.cfg.Fake.fault = failing("adopt", 2)
		m = r.manage(t)
		r.vm.Run = false
		m.sync(t, r.vm)
		m.await(t, r, "web-0", "stopped", func(s Status) bool { return s.Phase == Stopped })
		if r.cfg.Fake.Kill("web-0", "") {
			t.Error("it runs on")
		}
	})
}

// TestUnreadableDefinitionKeepsTheDisk: only a definition that is not there says
// that nobody knows what the disk is of.
func TestUnreadableDefinitionKeepsTheDisk(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"torn":         func(path string) error { return os.WriteFile(path, []byte(`{"vm":{"id":`), 0o600) },
		"empty":        func(path string) error { return os.Truncate(path, 0) },
		"not readable": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := fakeRig(t)
			r.vm.DiskBytes = MinDisk
			m := r.manage(t)
			m.sync(t, r.vm)
			m.await(t, r, "web-0", "ready", ready)
			m.end(t)
			definition, disk := filepath.Join(r.cfg.Dir, "web-0", specFile), filepath.Join(r.cfg.Dir, "web-0", diskFile)
			saved, err := os.ReadFile(definition)
			if err := errors.Join(err, spoil(definition), os.WriteFile(disk, []byte("precious"), 0o600)); err != nil {
				t.Fatal(err)
			}
			m = r.manage(t)
			m.sync(t, r.vm)
			if s, _ := m.status("web-0"); !ready(s) {
				t.Errorf("it runs: %+v", s)
			}
			r.cfg.Fake.Kill("web-0", "crash")
			m.await(t, r, "web-0", "failed", func(s Status) bool { return s.Phase == Failed && strings.Contains(s.Reason, specFile) })
			if data, err := os.ReadFile(disk); string(data) != "precious" {
				t.Fatalf("disk: %q, %v", data, err)
			}
			if err := errors.Join(os.RemoveAll(definition), os.WriteFile(definition, saved, 0o600)); err != nil {
				t.Fatal(err)
			}
			m.await(t, r, "web-0", "ready", ready)
			if data, err := os.ReadFile(disk); !strings.HasPrefix(string(data), "precious") {
				t.Errorf("disk: %.20q, %v", data, err)
			}
			m.end(t)
			if err := spoil(definition); err != nil {
				t.Fatal(err)
			}
			m = r.manage(t)
			m.sync(t)
			eventually(t, r.patience, "unlisted VM gone", func() bool { return len(m.List()) == 0 })
		})
	}
}

// TestScanLooksAtManyAtOnce: VMs whose shims are slow do not add up.
func TestScanLooksAtManyAtOnce(t *testing.T) {
	const n = 4
	r := fakeRig(t)
	m := r.manage(t)
	var vms []VM
	for i := range n {
		r.vm.ID = fmt.Sprintf("web-%d", i)
		vms = append(vms, r.vm)
	}
	m.sync(t, vms...)
	for _, vm := range vms {
		m.await(t, r, vm.ID, "ready", ready)
	}
	m.end(t)
	var met sync.WaitGroup
	met.Add(n)
	all := make(chan struct{})
	go func() {
		met.Wait()
		close(all)
	}()
	r.cfg.Fake.fault = func(op, _ string) error {
		if op != "adopt" {
			return nil
		}
		met.Done()
		select {
		case <-all:
			return nil
		case <-time.After(r.patience):
			return errors.New("looked at alone")
		}
	}
	m = r.manage(t)
	for _, s := range m.List() {
		if !ready(s) {
			t.Errorf("%+v", s)
		}
	}
}

// TestRevokedKeyDoesNotComeBack: a guest has the keys of the last wish, whoever
// gave it others meanwhile, and in the end also when giving fails.
func TestRevokedKeyDoesNotComeBack(t *testing.T) {
	r := fakeRig(t)
	m := r.manage(t)
	wish := func(key string) {
		t.Helper()
		r.vm.Guest.SSHKeys = []string{key}
		m.sync(t, r.vm)
		m.await(t, r, "web-0", "ready", ready)
		eventually(t, r.patience, key+" authorised", func() bool { return slices.Equal(r.cfg.Fake.authorized("web-0"), r.vm.Guest.SSHKeys) })
	}
	wish("A")
	wish("B")
	m.end(t)
	m = r.manage(t)
	wish("A")
	m.end(t)
	r.cfg.Fake.fault = failing("authorize", 3)
	m = r.manage(t)
	wish("C")
	if s, _ := m.status("web-0"); s.Launches != 0 {
		t.Errorf("rebooted: %+v", s)
	}
}

// TestEndOfTheManagerIsNotTheVMs: the events of a VM end with its Manager, too.
func TestEndOfTheManagerIsNotTheVMs(t *testing.T) {
	r := fakeRig(t)
	m := r.manage(t)
	m.sync(t, r.vm)
	before := m.await(t, r, "web-0", "ready", ready)
	m.end(t)
	r.cfg.Fake.fault = failing("adopt", 9)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := m.workers["web-0"]
	w.ended(ctx)
	if w.running() == nil || w.unsure || w.snapshot() != before {
		t.Errorf("unsure %v, %+v, was %+v", w.unsure, w.snapshot(), before)
	}
}
