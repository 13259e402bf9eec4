//go:build cgo

package automerge

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// history draws a causally ordered list of changes by a few actors, each of
// which sees the others' work only sometimes.
func history(t *rapid.T) []crdt.Change {
	values := [][]byte{{0x01}, {0x02}, {0xf6}, {0x61, 'x'}} // few, so that puts repeat
	keys := []string{"a", "b", "c", "pack"}
	var out []crdt.Change
	type actor struct {
		id    crdt.ActorID
		seq   uint64
		heads map[stmt.ID]bool
	}
	actors := make([]*actor, 3)
	for i := range actors {
		actors[i] = &actor{id: crdt.ActorID{byte(rapid.IntRange(0, 255).Draw(t, "actor")), byte(i)}}
	}
	past := map[stmt.ID]map[stmt.ID]bool{}
	add := func(a *actor) {
		a.seq++
		c := crdt.Change{Actor: a.id, Seq: a.seq, Time: int64(rapid.IntRange(0, stmt.MaxTime).Draw(t, "time"))}
		for h := range a.heads {
			c.Deps = append(c.Deps, h)
		}
		for _, k := range keys {
			if rapid.Bool().Draw(t, "set") || k == "a" {
				c.Ops = append(c.Ops, crdt.Op{Key: k, Value: rapid.SampledFrom(values).Draw(t, "value")})
			}
		}
		c.ID = sha256.Sum256(binary.BigEndian.AppendUint64(a.id[:], a.seq))
		past[c.ID] = map[stmt.ID]bool{c.ID: true}
		for h := range a.heads {
			for p := range past[h] {
				past[c.ID][p] = true
			}
		}
		a.heads = map[stmt.ID]bool{c.ID: true}
		out = append(out, c)
	}
	add(actors[0])
	for _, a := range actors {
		a.heads = map[stmt.ID]bool{out[0].ID: true}
	}
	for range rapid.IntRange(0, 25).Draw(t, "steps") {
		a := rapid.SampledFrom(actors).Draw(t, "who")
		if rapid.IntRange(0, 2).Draw(t, "sees") == 0 {
			b := rapid.SampledFrom(actors).Draw(t, "whom")
			for h := range b.heads {
				a.heads[h] = true
			}
			for h := range a.heads { // keep the maximal ones
				for o := range a.heads {
					if o != h && past[o][h] {
						delete(a.heads, h)
					}
				}
			}
		}
		add(a)
	}
	return out
}

// causal shuffles changes so that each still follows its dependencies.
func causal(t *rapid.T, changes []crdt.Change) []crdt.Change {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 1))
	have := map[stmt.ID]bool{}
	left := append([]crdt.Change{}, changes...)
	var out []crdt.Change
	for len(left) > 0 {
		i := rng.IntN(len(left))
		ready := true
		for _, d := range left[i].Deps {
			ready = ready && have[d]
		}
		if !ready {
			continue
		}
		have[left[i].ID] = true
		out = append(out, left[i])
		left = append(left[:i], left[i+1:]...)
	}
	return out
}

func replayAll(t *rapid.T, e crdt.SpecEngine, id crdt.DocID, changes []crdt.Change) map[string][]byte {
	if err := e.Root(id, changes[0]); err != nil {
		t.Fatalf("root: %v", err)
	}
	for _, c := range changes[1:] {
		if err := e.Apply(id, c); err != nil {
			t.Fatalf("apply: %v", err)
		}
	}
	vals, err := e.Values(id)
	if err != nil {
		t.Fatalf("values: %v", err)
	}
	return vals
}

// Automerge and the model give equal values for the same changes in different
// causal orders, with documents closed and opened again between.
func TestEqualsModel(t *testing.T) {
	e := newEngine(2)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		changes := history(t)
		n++
		want := replayAll(t, crdt.NewModel(), crdt.DocID{1}, changes)
		for i := range 3 {
			got := replayAll(t, e, crdt.DocID{byte(n), byte(i)}, causal(t, changes))
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("automerge %v, model %v", got, want)
			}
		}
		for i := range 3 { // the first of them has been closed by now
			got, err := e.Values(crdt.DocID{byte(n), byte(i)})
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("after reopening: automerge %v (%v), model %v", got, err, want)
			}
		}
	})
}

func TestClosedDocumentsTakeChanges(t *testing.T) {
	e := newEngine(1)
	root := crdt.Change{ID: stmt.ID{1}, Actor: crdt.ActorID{1}, Seq: 1, Ops: []crdt.Op{{Key: "a", Value: []byte{1}}}}
	for i := range byte(3) {
		if err := e.Root(crdt.DocID{i}, root); err != nil {
			t.Fatal(err)
		}
	}
	next := crdt.Change{ID: stmt.ID{2}, Actor: crdt.ActorID{1}, Seq: 2, Deps: []stmt.ID{{1}}, Ops: []crdt.Op{{Key: "a", Value: []byte{2}}}}
	if err := e.Apply(crdt.DocID{0}, next); err != nil {
		t.Fatal(err)
	}
	for i, want := range []byte{2, 1, 1} {
		vals, err := e.Values(crdt.DocID{byte(i)})
		if err != nil || !bytes.Equal(vals["a"], []byte{want}) {
			t.Fatalf("document %d: %v %v", i, vals, err)
		}
	}
	e.Drop(crdt.DocID{0})
	if _, err := e.Values(crdt.DocID{0}); err == nil {
		t.Fatal("a dropped document has values")
	}
}

func TestRefusesWhatWouldPoison(t *testing.T) {
	e := New()
	ok := crdt.Change{ID: stmt.ID{1}, Actor: crdt.ActorID{1}, Seq: 1, Ops: []crdt.Op{{Key: "a", Value: []byte{1}}}}
	if err := e.Root(crdt.DocID{}, ok); err != nil {
		t.Fatal(err)
	}
	bad := ok
	bad.ID, bad.Seq, bad.Deps, bad.Time = stmt.ID{2}, 2, []stmt.ID{{1}}, -1<<63
	if err := e.Apply(crdt.DocID{}, bad); err == nil {
		t.Fatal("a time that poisons the document is accepted")
	}
	if vals, err := e.Values(crdt.DocID{}); err != nil || len(vals) != 1 {
		t.Fatalf("after the refusal: %v %v", vals, err)
	}
}

// A State on Automerge has the same View as one on the model, through history,
// re-rooting and concurrent devices.
func TestStatesAgree(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	network := stmt.NewNetworkID("open", stmt.Key{})
	model := crdt.NewState(network, stmt.Key{}, crdt.NewModel())
	am := crdt.NewState(network, stmt.Key{}, newEngine(2))
	var all [][]byte
	apply := func(raws [][]byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range raws {
			for _, s := range []*crdt.State{model, am} {
				// Of two devices that re-root at once, one is told to try again.
				if _, err := s.Apply(raw, time.Time{}); err != nil && !errors.Is(err, crdt.ErrStale) {
					t.Fatal(err)
				}
			}
		}
		all = append(all, raws...)
	}
	author := func() *crdt.Author {
		a, err := crdt.NewAuthor(key, network, all)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	var ids []string
	for i := range 3 {
		id, raws, err := author().Create(crdt.Spec{Name: fmt.Sprintf("app-%d", i), Env: map[string]string{"A": "1", "B": "2"}})
		apply(raws, err)
		ids = append(ids, id)
	}
	for i := range 45 {
		one, two := author(), author()
		id := ids[i%10%3*(i%5/4)] // mostly the first, so that it is re-rooted
		apply(one.Set(id, func(s *crdt.Spec) { s.Replicas, s.Region = i%7, fmt.Sprint(i) }))
		apply(two.Set(id, func(s *crdt.Spec) {
			s.Replicas = i % 5
			delete(s.Env, "B")
			s.Env[fmt.Sprint("K", i%3)] = fmt.Sprint(i)
		}))
		if got, want := fmt.Sprintf("%+v", am.View().Instances()), fmt.Sprintf("%+v", model.View().Instances()); got != want {
			t.Fatalf("after %d: automerge %s\nmodel %s", i, got, want)
		}
	}
	if spec, ok := am.View().Instance(ids[0]); !ok || spec.Epoch < 2 {
		t.Fatalf("the history was too short to be re-rooted: %+v", spec)
	}
}
