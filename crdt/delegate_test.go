package crdt

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// delegated is an instance of olga's that dee may change, with a change of dee's.
func delegated(t *testing.T) (w *world, a *Author, id string, change []byte) {
	t.Helper()
	w = newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a = w.author("olga", nil)
	id, raws, err := a.Create(Spec{Name: "hello", Replicas: 1, Delegates: []stmt.Key{pub("dee")}})
	if err != nil {
		t.Fatal(err)
	}
	w.raws = append(w.raws, raws...)
	d := w.delegate("dee", "olga", w.raws)
	set, err := d.Set(id, func(s *Spec) { s.Replicas = 3 })
	if err != nil {
		t.Fatal(err)
	}
	return w, a, id, set[0]
}

// A delegate, who need be no member, changes what the owner's root lets it, in
// that root's epoch and no other.
func TestDelegate(t *testing.T) {
	w, _, id, change := delegated(t)
	want := func(s *State, replicas int, epoch uint64) {
		t.Helper()
		if got, ok := s.View().Instance(id); !ok || got.Replicas != replicas || got.Epoch != epoch {
			t.Fatalf("%+v, want %d replicas in epoch %d", got, replicas, epoch)
		}
	}
	s := w.state()
	applyAll(s, append(w.raws, change))
	want(s, 3, 1)
	early := w.state()
	applyAll(early, append([][]byte{change}, w.raws...))
	want(early, 3, 1)

	st, err := stmt.Peek(change, w.net)
	if err != nil {
		t.Fatal(err)
	}
	// What dee said is of no use in the name of another, with another's key, or
	// under a root that does not list dee.
	forge := func(by string, epoch uint64, alter func(*specBody)) error {
		b, _, err := decodeSpec(st)
		if err != nil {
			t.Fatal(err)
		}
		alter(b)
		body, err := b.encode()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := stmt.Sign(keyOf(by), stmt.Statement{Kind: stmt.KindSpec, Network: w.net, Epoch: epoch, Seq: st.Seq, Deps: st.Deps, Body: body})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Apply(raw, time.Time{})
		return err
	}
	another := func(b *specBody) { b.Actor[0]++ }
	for _, tt := range []struct {
		name  string
		by    string
		epoch uint64
		alter func(*specBody)
		want  error
	}{
		{"a stranger's change", "eve", 1, another, stmt.ErrAuthority},
		{"a delegate's root", "dee", 2, func(b *specBody) { b.Root = stmt.ID{} }, ErrInvalid},
		{"a delegate's change that makes delegates", "dee", 1, func(b *specBody) { b.Delegates = []stmt.Key{pub("eve")} }, ErrInvalid},
		{"a delegate's change of the voters", "dee", 1, func(b *specBody) { b.Actor[0]++; b.Ops = []Op{{Key: keyVoters, Value: []byte{0xf6}}} }, ErrInvalid},
		{"a delegate's change of the contract", "dee", 1, func(b *specBody) { b.Actor[0]++; b.Ops = []Op{{Key: keyPartition, Value: []byte{0xf6}}} }, ErrInvalid},
		{"a delegate's change of the term", "dee", 1, func(b *specBody) { b.Actor[0]++; b.Ops = append([]Op{{Key: keyTerm, Value: []byte{1}}}, b.Ops...) }, ErrInvalid},
		{"the owner as its own delegate", "olga", 1, another, ErrInvalid},
		{"a change that names an owner who is no member", "dee", 1, func(b *specBody) { b.Owner = pub("eve") }, ErrNotMember},
		{"an old epoch", "dee", 0, another, ErrStale},
	} {
		if err := forge(tt.by, tt.epoch, tt.alter); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	want(s, 3, 1)

	// The owner's next root without dee ends it, with one that dee was in it goes on.
	a := w.author("olga", append(w.raws, change))
	raws, err := a.Set(id, func(s *Spec) { s.Replicas, s.Delegates = 4, nil })
	if err != nil {
		t.Fatal(err)
	}
	applyAll(s, raws)
	want(s, 4, 2)
	if got, _ := s.View().Instance(id); len(got.Delegates) != 0 {
		t.Fatalf("delegates %v", got.Delegates)
	}
	if err := forge("dee", 2, func(b *specBody) { b.Root = mustID(t, raws[0], w) }); !errors.Is(err, stmt.ErrAuthority) {
		t.Errorf("under a root that does not list it: %v", err)
	}
	if _, err := s.Apply(change, time.Time{}); !errors.Is(err, ErrStale) {
		t.Errorf("its old change again: %v", err)
	}
	want(s, 4, 2)
}

// What takes the owner's key says so to whoever has a delegate's.
func TestDelegateNeedsTheOwner(t *testing.T) {
	w, a, id, _ := delegated(t)
	d := w.delegate("dee", "olga", w.raws)
	for name, do := range map[string]func() error{
		"create": func() error { _, _, err := d.Create(Spec{Name: "mine"}); return err },
		"delete": func() error { _, err := d.Delete(id); return err },
		"delegates": func() error {
			_, err := d.Set(id, func(s *Spec) { s.Delegates = append(s.Delegates, pub("eve")) })
			return err
		},
		"voters": func() error {
			_, err := d.Set(id, func(s *Spec) { s.Partition, s.Voters = PartitionFence, []stmt.Key{pub("n1")} })
			return err
		},
		"a full document": func() error {
			for i := range 2000 {
				if _, err := d.Set(id, func(s *Spec) { s.Env = map[string]string{"A": fmt.Sprintf("%03000d", i)} }); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		if err := do(); !errors.Is(err, ErrNotOwner) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.delegate("eve", "olga", w.raws).Set(id, func(s *Spec) { s.Replicas = 9 }); !errors.Is(err, stmt.ErrAuthority) {
		t.Errorf("another's: %v", err)
	}
	many := make([]stmt.Key, MaxDelegates+1)
	for i := range many {
		many[i] = stmt.Key{byte(i + 1)}
	}
	for name, keys := range map[string][]stmt.Key{"too many": many, "the owner": {pub("olga")}, "nobody": {{}}} {
		if _, err := a.Set(id, func(s *Spec) { s.Delegates = keys }); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The owner begins anew what the delegate has filled, and it stays a delegate.
	a = w.author("olga", d.state.OwnerStatements(pub("olga")))
	raws, err := a.Set(id, func(s *Spec) { s.Replicas = 2 })
	if err != nil {
		t.Fatal(err)
	}
	d = w.delegate("dee", "olga", append(w.raws, raws...))
	if _, err := d.Set(id, func(s *Spec) { s.Replicas = 5 }); err != nil {
		t.Errorf("after a re-root: %v", err)
	}
}

// Strangers that name an owner cannot fill what is set aside for its documents.
func TestStrangersDoNotFillPending(t *testing.T) {
	w, _, id, change := delegated(t)
	s := w.state()
	applyAll(s, w.raws[:1]) // the owner is a member, its document has not arrived
	st, err := stmt.Peek(change, w.net)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxPendingPerKey {
		raw, err := stmt.Sign(keyOf(fmt.Sprint("eve", i)), stmt.Statement{Kind: stmt.KindSpec, Network: w.net, Epoch: 1, Seq: st.Seq, Deps: st.Deps, Body: st.Body})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(raw, time.Time{}); !errors.Is(err, ErrPending) {
			t.Fatal(err)
		}
	}
	if s.Pending() != maxPendingGuests {
		t.Fatalf("%d are set aside", s.Pending())
	}
	a := w.author("olga", w.raws)
	own, err := a.Set(id, func(s *Spec) { s.Region = "eu" })
	if err != nil {
		t.Fatal(err)
	}
	applyAll(s, append(own, w.raws...))
	if got, _ := s.View().Instance(id); got.Region != "eu" || got.Replicas != 1 || s.Pending() != 0 {
		t.Fatalf("%+v, %d set aside", got, s.Pending())
	}
}

// A delegate that signs two contents for one change freezes the document, and the
// owner, in a new epoch without it, goes on.
func TestDelegateEquivocates(t *testing.T) {
	w, _, id, _ := delegated(t)
	twin := func(replicas int) []byte {
		d, err := newAuthor(keyOf("dee"), pub("olga"), w.net, w.raws, seeded(77))
		if err != nil {
			t.Fatal(err)
		}
		raws, err := d.Set(id, func(s *Spec) { s.Replicas = replicas })
		if err != nil {
			t.Fatal(err)
		}
		return raws[0]
	}
	all := append(append([][]byte{}, w.raws...), twin(5), twin(7))
	rapid.Check(t, func(t *rapid.T) {
		s := w.state()
		applyAll(s, shuffled(t, all))
		if got, _ := s.View().Instance(id); !got.Frozen || got.Replicas != 1 {
			t.Fatalf("not frozen at its root: %+v", got)
		}
		raws, err := w.author("olga", s.OwnerStatements(pub("olga"))).Set(id, func(s *Spec) { s.Delegates = nil })
		if err != nil {
			t.Fatal(err)
		}
		applyAll(s, raws)
		if got, _ := s.View().Instance(id); got.Frozen || len(got.Delegates) != 0 {
			t.Fatalf("the owner cannot end it: %+v", got)
		}
	})
}
