package crdt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// flood makes one document of olga's with many devices that change it at once,
// each change of some KiB: the root, and then n changes.
func flood(t *rapid.T, w *world, n int) (id DocID, raws [][]byte) {
	w.admit("olga", stmt.RoleOwner)
	id, root := w.signedRoot("olga", map[string]any{keyName: "a"})
	body, err := stmt.Marshal(ownerBody{Live: []DocID{id}})
	w.register("olga", stmt.KindOwner, 0, 0, body, err)
	rootID := stmtID(t, w, root)
	type device struct {
		last stmt.ID
		seq  uint64
	}
	devices := make([]device, 6)
	for i := range n {
		dev := rapid.IntRange(0, len(devices)-1).Draw(t, "device")
		d := &devices[dev]
		deps := []stmt.ID{rootID}
		if d.seq > 0 {
			deps = []stmt.ID{d.last}
		}
		if o := devices[rapid.IntRange(0, len(devices)-1).Draw(t, "sees")]; o.seq > 0 && o.last != deps[0] {
			deps = append(deps, o.last)
		}
		slices.SortFunc(deps, stmt.ID.Compare)
		d.seq++
		val, _ := stmt.Marshal(strings.Repeat("v", rapid.SampledFrom([]int{0, 2500, 3800}).Draw(t, "size")))
		body, err := (&specBody{Actor: ActorID{byte(dev + 1)}, Root: rootID, Ops: []Op{{fmt.Sprint("x", i%7), val}}}).encode()
		if err != nil {
			t.Fatalf("body: %v", err)
		}
		raw := w.must(stmt.Sign(keyOf("olga"), stmt.Statement{Kind: stmt.KindSpec, Network: w.net, Epoch: 1, Seq: d.seq, Deps: deps, Body: body}))
		d.last = stmtID(t, w, raw)
	}
	return id, w.raws
}

func stmtID(t *rapid.T, w *world, raw []byte) stmt.ID {
	st, err := stmt.Peek(raw, w.net)
	if err != nil {
		t.Fatalf("peek: %v", err)
	}
	return st.ID
}

// A document over its bound ends as the same on every replica, whatever came
// first, and whatever came by anti-entropy.
func TestDocumentBoundConverges(t *testing.T) {
	over := false
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		id, raws := flood(t, w, rapid.SampledFrom([]int{5, 50, 60, 70}).Draw(t, "changes"))
		ref := w.state()
		applyAll(ref, raws)
		d := ref.docs.get(id)
		size := 0
		for _, ch := range d.order {
			size += len(ch.raw)
		}
		if size != d.bytes || size > MaxDocBytes+stmt.MaxStatement || ref.ids.len() != len(d.order)+2 {
			t.Fatalf("%d bytes, said to be %d, in %d changes", size, d.bytes, len(d.order))
		}
		over = over || len(d.order) < len(raws)-2
		want := render(ref.View())

		other := w.state()
		applyAll(other, shuffled(t, raws))
		applyAll(other, raws) // what pending could not keep comes again
		if got := render(other.View()); got != want {
			t.Fatalf("another order:%s %s", diffLines(want, got), diffIndex(ref, other))
		}

		states := []*State{w.state(), w.state()}
		for i, raw := range shuffled(t, raws) {
			_, _ = states[i%2].Apply(raw, time.Time{})
		}
		for n := 0; n == 0 || digest(states[0].index().items) != digest(states[1].index().items); n++ {
			if err := converse(states[0], states[1]); err != nil || n > 80 {
				t.Fatalf("session %d: %v %s", n, err, diffIndex(states[0], states[1]))
			}
		}
		for _, s := range states {
			applyAll(s, raws)
			if got := render(s.View()); got != want {
				t.Fatalf("by anti-entropy:%s", diffLines(want, got))
			}
		}
	})
	if !over {
		t.Error("no document was over its bound")
	}
}

// A change past the bound is refused, and what it says is not kept for long.
func TestDocumentBound(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	id, root := w.signedRoot("olga", map[string]any{keyName: "a"})
	s := w.state()
	applyAll(s, w.raws)
	rootID := mustID(t, root, w)
	val, _ := stmt.Marshal(strings.Repeat("v", 3500))
	refused := 0
	for i := range 200 { // all at once: one change each of 200 devices
		body, err := (&specBody{Actor: ActorID{byte(i), 1}, Root: rootID, Ops: []Op{{"x", val}, {"y", val}}}).encode()
		if err != nil {
			t.Fatal(err)
		}
		raw := w.must(stmt.Sign(keyOf("olga"), stmt.Statement{Kind: stmt.KindSpec, Network: w.net, Epoch: 1, Seq: 1, Deps: []stmt.ID{rootID}, Body: body}))
		if _, err := s.Apply(raw, time.Time{}); errors.Is(err, ErrQuota) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	d := s.docs.get(id)
	if d.bytes > MaxDocBytes+stmt.MaxStatement || d.noted > 2*MaxDocBytes+stmt.MaxStatement || refused == 0 {
		t.Errorf("%d bytes held, %d noted, %d refused", d.bytes, d.noted, refused)
	}
	noted := len(d.root.raw)
	for _, r := range d.seen {
		noted += len(r.raw)
	}
	if noted != d.noted {
		t.Errorf("%d bytes noted, said to be %d", noted, d.noted)
	}
}

// Statements of kinds that have no use for dependencies or a delegation carry
// none: they would be 8 KiB of anything.
func TestUnusedFields(t *testing.T) {
	w := newWorld(t)
	w.admit("n1", stmt.RoleNode)
	w.admit("olga", stmt.RoleOwner)
	s := w.state()
	applyAll(s, w.raws)
	node, err := encodeNode(Node{}, mark{})
	if err != nil {
		t.Fatal(err)
	}
	claim, err := encodeClaim(Claim{Instance: DocID{1}.String(), Owner: pub("olga")}, false)
	if err != nil {
		t.Fatal(err)
	}
	owner, _ := stmt.Marshal(ownerBody{Live: []DocID{{1}}})
	base, _ := stmt.Marshal(stmt.BaseBody{Name: "a", CID: testPack})
	_, root := w.signedRoot("olga", map[string]any{keyName: "a"})
	spec, err := stmt.Peek(root, w.net)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		by   string
		st   stmt.Statement
		deps bool // may have some
	}{
		{"n1", stmt.Statement{Kind: stmt.KindNode, Seq: 1, Body: node}, false},
		{"n1", stmt.Statement{Kind: stmt.KindClaim, Seq: 1, Body: claim}, false},
		{"olga", stmt.Statement{Kind: stmt.KindOwner, Body: owner}, false},
		{"olga", stmt.Statement{Kind: stmt.KindBase, Seq: 1, Body: base}, false},
		{"olga", stmt.Statement{Kind: stmt.KindSpec, Epoch: 1, Seq: 1, Body: spec.Body}, true},
	} {
		tt.st.Network = w.net
		apply := func(st stmt.Statement) error {
			_, err := s.Apply(w.must(stmt.Sign(keyOf(tt.by), st)), time.Time{})
			return err
		}
		via, deps := tt.st, tt.st
		via.Via, deps.Deps = make([]byte, 4000), []stmt.ID{{1}}
		if err := apply(via); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s with a delegation: %v", tt.st.Kind, err)
		}
		if err := apply(deps); tt.deps != (err == nil) {
			t.Errorf("%s with dependencies: %v", tt.st.Kind, err)
		}
		if err := apply(tt.st); err != nil && !errors.Is(err, ErrStale) {
			t.Errorf("%s: %v", tt.st.Kind, err)
		}
	}
}

// What is read off a root alone is what the specification makes of it.
func TestRootReadsAsInTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		ops := map[string]any{}
		for _, k := range []string{keyName, keyReplicas, keyRegion, "x", "env/A"} {
			if rapid.Bool().Draw(t, "set") || k == keyName {
				ops[k] = rapid.SampledFrom([]any{nil, 1, "a", []byte{1}}).Draw(t, "value")
			}
		}
		_, raw := w.signedRoot("olga", ops)
		st, err := stmt.Peek(raw, w.net)
		if err != nil {
			t.Fatal(err)
		}
		_, c, err := decodeSpec(st)
		if err != nil {
			t.Fatal(err)
		}
		m := NewModel()
		if err := m.Root(DocID{}, c); err != nil {
			t.Fatal(err)
		}
		want, err := m.Values(DocID{})
		if got := opMap(c.rootValues()); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("root reads as %v, in the model %v (%v)", got, want, err)
		}
	})
}

func opMap(ops []Op) map[string][]byte {
	out := map[string][]byte{}
	for _, op := range ops {
		out[op.Key] = op.Value
	}
	return out
}

// What a State reads, of a root, a line or what the engine merged, is what the
// specification makes of the changes that count.
func TestDocumentsReadAsInTheModel(t *testing.T) {
	var roots, lines, merged int
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		if rapid.Bool().Draw(t, "many devices at once") {
			flood(t, w, rapid.IntRange(0, 12).Draw(t, "changes"))
		} else {
			w = history(t, false)
		}
		s := w.state()
		applyAll(s, shuffled(t, w.raws))
		for id, d := range s.docs.all() {
			m := &State{network: s.network, engine: NewModel()}
			if err := m.replay(d, d.order); err != nil {
				t.Fatal(err)
			}
			want, err := m.engine.Values(id)
			if err != nil {
				t.Fatal(err)
			}
			vals, err := s.values(d)
			if got := opMap(vals); err != nil || len(got) != len(vals) || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%s, %d changes: %v (%v), in the model %v", id, len(d.order), got, err, want)
			}
			switch {
			case len(d.order) == 1:
				roots++
			case d.line != nil:
				lines++
			default:
				merged++
			}
		}
	})
	if roots == 0 || lines == 0 || merged == 0 {
		t.Errorf("%d roots, %d lines, %d merged: not every way was taken", roots, lines, merged)
	}
}

// A document at rest is re-rooted by its next change; one at work is not.
func TestRerootsWhenQuiet(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	now := testNow
	a.Now = func() time.Time { return now }
	id, _, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		wait    time.Duration
		epoch   uint64
		changes int
	}{{time.Minute, 1, 2}, {time.Minute, 1, 3}, {rerootQuiet, 2, 1}, {0, 2, 2}, {2 * rerootQuiet, 3, 1}} {
		now = now.Add(tt.wait)
		before, _ := a.state.View().Instance(id)
		if _, err := a.Set(id, func(s *Spec) { s.Restart++ }); err != nil {
			t.Fatal(err)
		}
		d := a.state.docs.get(mustDoc(t, id))
		after, _ := a.state.View().Instance(id)
		if d.epoch != tt.epoch || len(d.order) != tt.changes || after.Restart != before.Restart+1 || after.Generation != before.Generation+1 {
			t.Errorf("after %s: epoch %d with %d changes, want %d with %d; %+v", tt.wait, d.epoch, len(d.order), tt.epoch, tt.changes, after)
		}
	}
}
