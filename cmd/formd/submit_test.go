package main

import (
	"errors"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// A change that waits for what it builds on is no mistake of the owner's: the API says
// that it is set aside, and what to do. It takes effect once the rest is there.
func TestChangeIsSetAside(t *testing.T) {
	id := &identity{Key: newKey(t)}
	id.Name = "open"
	r, err := crdt.Open(crdt.ReplicaConfig{Dir: t.TempDir(), Key: id.Key, Network: id.network(), Root: id.Root, Engine: crdt.NewModel()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	au, err := crdt.NewAuthor(newKey(t), id.network(), nil)
	if err != nil {
		t.Fatal(err)
	}
	instance, made, err := au.Create(crdt.Spec{Name: "web", Pack: "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", Replicas: 1, Phase: crdt.PhaseRunning})
	if err != nil {
		t.Fatal(err)
	}
	changed, err := au.Set(instance, func(s *crdt.Spec) { s.Restart++ })
	if err != nil {
		t.Fatal(err)
	}
	sub := &submitter{Replica: r, id: id, now: time.Now}
	_, err = sub.Submit(t.Context(), changed...)
	var p *api.Problem
	if !errors.As(err, &p) || p.Exit != api.ExitFailed || p.Hint == "" {
		t.Errorf("before what it builds on: %+v", err)
	}
	if _, err := sub.Submit(t.Context(), made...); err != nil {
		t.Fatal(err)
	}
	if s, there := r.View().Instance(instance); !there || s.Restart != 1 {
		t.Errorf("once that is there: %+v, %v", s, there)
	}
}

// Whatever the state refuses, the API says what to do where that is not to correct
// what was asked for.
func TestRefusalsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		exit int
		hint bool
	}{
		{crdt.ErrPending, api.ExitFailed, true}, {crdt.ErrFrozen, api.ExitFailed, true}, {crdt.ErrStale, api.ExitFailed, true},
		{crdt.ErrQuota, api.ExitUsage, true}, {crdt.ErrNotMember, api.ExitNotAllowed, true}, {stmt.ErrNetwork, api.ExitUsage, true},
		{crdt.ErrInvalid, api.ExitUsage, false}, {stmt.ErrTooLarge, api.ExitUsage, false}, {crdt.ErrNotFound, api.ExitNotFound, false},
	} {
		var p *api.Problem
		if err := submitProblem(c.err); !errors.As(err, &p) || p.Exit != c.exit || (p.Hint != "") != c.hint {
			t.Errorf("%v: %+v", c.err, err)
		}
	}
}
