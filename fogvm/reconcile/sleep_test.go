package reconcile

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

// look has the loop look n times, each because of a kick of its own.
func (m *machine) look(n int) {
	m.t.Helper()
	for range n {
		before := m.counted.steps.Load()
		m.rec.Kick()
		within(m.t, 20*time.Second, "a look", func() error {
			if m.counted.steps.Load() == before {
				return errors.New("none")
			}
			return nil
		})
	}
}

func (m *machine) deciding(want bool) {
	m.t.Helper()
	within(m.t, 20*time.Second, fmt.Sprintf("machine %d decides: %v", m.n, want), func() error {
		if m.rec.Deciding() != want {
			return errors.New("not so")
		}
		return nil
	})
}

// A machine that slept does nothing about what it remembers, whatever it sees and
// whoever asks, until it has synchronised; then it does what has become due.
func TestNothingIsDoneBetweenWakeAndResync(t *testing.T) {
	h, l := newHub(), newLibrary()
	all := map[stmt.Key]*machine{}
	var ms []*machine
	for n := range byte(3) {
		m := newMachine(t, h, l, n+1)
		ms, all[m.key] = append(ms, m), m
	}
	pack := l.add("one", store.RunConfig{})
	o := ship(t, ms[0], pack, 1)
	sleeper := all[o.waitReady(ms[0], 1)[0]]
	sleeper.deciding(true)
	var witness *machine
	for _, m := range ms {
		if m != sleeper {
			witness = m
		}
	}

	// It sleeps for an hour: the others take over, and the owner deletes.
	sleeper.clock.stop(0)
	sleeper.end.setCut(true)
	within(t, 20*time.Second, "takeover", func() error {
		if now, err := o.ready(witness, 1); err != nil || now[0] == sleeper.key {
			return errors.Join(err, errors.New("the slot is not taken over"))
		}
		return nil
	})
	raws, err := o.a.Delete(o.id)
	if err != nil {
		t.Fatal(err)
	}
	o.submit(witness, raws)

	sleeper.clock.stop(time.Hour)
	sleeper.look(1) // the first thing that happens after the sleep
	if sleeper.rec.Deciding() {
		t.Fatal("it decides at once")
	}
	if n := sleeper.wakes.Load(); n != 1 {
		t.Errorf("its connections were looked at %d times", n)
	}
	sleeper.gate.mu.Lock()
	writes := sleeper.gate.writes
	sleeper.gate.mu.Unlock()
	syncs := sleeper.counted.syncs.Load()
	// What it remembers and sees would move it otherwise: every other node seems
	// dead, and its store has packs that nothing it knows needs.
	if dead := sleeper.prober.Dead(); len(dead) != 0 {
		t.Errorf("it believes these dead: %v", dead)
	}
	sleeper.shelf.mu.Lock()
	sleeper.shelf.here[l.add("stray", store.RunConfig{})] = true
	sleeper.shelf.mu.Unlock()
	sleeper.rec.packs.collect(context.Background())
	sleeper.look(10)
	sleeper.gate.mu.Lock()
	if n := sleeper.gate.writes; n != writes {
		t.Errorf("claims were written %d times", n-writes)
	}
	sleeper.gate.mu.Unlock()
	if n := sleeper.counted.syncs.Load(); n != syncs {
		t.Errorf("VMs were changed %d times", n-syncs)
	}
	if vms := sleeper.vms.List(); len(vms) != 1 || !vms[0].Ready {
		t.Errorf("the VM does not run on: %+v", vms)
	}
	sleeper.shelf.mu.Lock()
	if n := len(sleeper.shelf.here); n != 2 {
		t.Errorf("%d packs are left of 2", n)
	}
	sleeper.shelf.mu.Unlock()
	if sleeper.rec.Deciding() {
		t.Fatal("it decides without having synchronised")
	}

	sleeper.end.setCut(false)
	sleeper.deciding(true)
	within(t, 20*time.Second, "the replica that was deleted meanwhile ends", func() error {
		if n, c := len(sleeper.vms.List()), len(sleeper.state.View().ClaimsBy(sleeper.key)); n+c != 0 {
			return fmt.Errorf("%d VMs, %d claims", n, c)
		}
		return nil
	})
}

// With nobody to synchronise with a machine that slept goes on alone, as one that
// starts alone does.
func TestAloneAfterASleep(t *testing.T) {
	m := newMachine(t, newHub(), newLibrary(), 1)
	m.deciding(true)
	o := ship(t, m, m.lib.add("one", store.RunConfig{}), 1)
	o.waitReady(m, 1)
	m.clock.stop(time.Hour)
	m.look(1)
	if m.rec.Deciding() {
		t.Fatal("it decides at once")
	}
	m.clock.stop(4 * time.Second)
	m.look(2)
	if m.rec.Deciding() {
		t.Fatal("it decides after 4 s alone")
	}
	m.clock.stop(2 * time.Second)
	m.deciding(true)
	o.waitReady(m, 1)
}
