package main

import (
	"context"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// A change that another device's work left out is told of.
func TestInspectTellsWhatWasLeftOut(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 1})
	pen := func() *crdt.Author {
		a, err := crdt.NewAuthor(h.owner, testNet, h.daemon.OwnerStatements(stmt.KeyOf(h.owner)))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	laptop, desk := pen(), pen()
	for _, w := range []struct {
		by     *crdt.Author
		change func(*crdt.Spec)
	}{
		{laptop, func(s *crdt.Spec) { s.Region = "eu" }},
		{desk, func(s *crdt.Spec) { s.Delegates = []stmt.Key{stmt.KeyOf(testKey(7))} }}, // begins an epoch
	} {
		raws, err := w.by.Set(id, w.change)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.daemon.Submit(context.Background(), raws...); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ flag, says string }{{"", "left out: a change of region by "}, {"--json", `"omitted": [`}} {
		if code, out, talk := h.form(append([]string{"manage", "inspect", "web"}, strings.Fields(tt.flag)...)...); code != api.ExitOK || !strings.Contains(out, tt.says) {
			t.Errorf("%q: exit %d, %q, %q", tt.flag, code, out, talk)
		}
	}
}
