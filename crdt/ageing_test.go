package crdt

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// gone is a network with two nodes of which one, n2, has a register, a claim and
// a tombstone.
func gone(t testing.TB) (w *world, id string) {
	w = newWorld(t)
	w.admit("n1", stmt.RoleNode)
	w.admit("n2", stmt.RoleNode)
	w.admit("olga", stmt.RoleOwner)
	id, raws, err := w.author("olga", nil).Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	w.raws = append(w.raws, raws...)
	w.node("n1", 1, 1, Node{})
	w.node("n2", 1, 1, Node{})
	w.claim("n2", 1, 2, Claim{Instance: id, Owner: pub("olga"), Phase: ClaimRunning}, false)
	w.claim("n2", 1, 3, Claim{Instance: id, Owner: pub("olga"), Slot: 1}, true)
	return w, id
}

// A forgotten node counts no more and is not sent again, and nothing else of the
// state changes; what it says later counts at once.
func TestForget(t *testing.T) {
	w, id := gone(t)
	s, other, fresh := w.state(), w.state(), w.state()
	applyAll(s, w.raws)
	applyAll(other, w.raws)
	equal := func() bool { return digest(s.index().items) == digest(other.index().items) }
	if !s.Forget(pub("n2")) || s.Forget(pub("n2")) || s.Forget(pub("n9")) {
		t.Fatal("Forget says something else than it does")
	}
	if v := s.View(); len(v.Nodes()) != 1 || len(v.Claims(id)) != 0 || len(v.ClaimsBy(pub("n2"))) != 0 {
		t.Fatalf("a forgotten node counts: %s", render(v))
	}
	applyAll(s, w.raws)
	if v := s.View(); len(v.Nodes()) != 1 || len(v.Claims(id)) != 0 {
		t.Fatal("a replay brings it back")
	}
	if !equal() || s.Fingerprint() != other.Fingerprint() {
		t.Fatalf("digests differ: %s", diffIndex(other, s))
	}
	for _, raw := range s.Held() {
		if st, err := stmt.Peek(raw, w.net); err != nil || st.Author == pub("n2") {
			t.Fatalf("bytes of a forgotten node are kept (%v)", err)
		}
	}
	// A session with a replica that knows nothing gives the rest.
	if err := converse(fresh, s); err != nil || len(fresh.View().Nodes()) != 1 || len(fresh.View().Instances()) != 1 {
		t.Fatalf("%v %s", err, render(fresh.View()))
	}

	stale := newWorld(t).node("n2", 1, 1, Node{Version: "another one"})
	if _, err := s.Apply(stale, time.Time{}); !errors.Is(err, ErrStale) {
		t.Fatalf("what is not later: %v", err)
	}
	for _, later := range [][]byte{
		newWorld(t).node("n2", 1, 4, Node{}),
		newWorld(t).claim("n2", 2, 1, Claim{Instance: id, Owner: pub("olga")}, false),
	} {
		applyAll(s, [][]byte{later})
		applyAll(other, [][]byte{later})
		for n := 0; !equal(); n++ {
			if err := converse(s, other); err != nil || n > 3 {
				t.Fatalf("session %d: %v %s", n, err, diffIndex(s, other))
			}
		}
		if got, want := render(s.View()), render(other.View()); got != want || len(s.husks) != 0 {
			t.Fatalf("back, it looks otherwise:%s", diffLines(want, got))
		}
		s.Forget(pub("n2"))
	}
	s.Remember(pub("n2"))
	if err := converse(s, other); err != nil || !equal() || len(s.View().Nodes()) != 2 {
		t.Fatalf("remembered: %v %s", err, diffIndex(s, other))
	}
}

// Whatever happens meanwhile, a State that has forgotten nodes and remembers them
// ends as one that never did.
func TestForgettingLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, false)
		ref, s := w.state(), w.state()
		applyAll(ref, w.raws)
		nodes := []stmt.Key{pub("n1"), pub("n2"), pub("n3")}
		for i, raw := range shuffled(t, w.raws) {
			_, _ = s.Apply(raw, time.Time{})
			if i%5 == 0 {
				s.Forget(rapid.SampledFrom(nodes).Draw(t, "forgotten"))
			}
			if i%7 == 0 {
				s.View()
			}
		}
		for _, n := range nodes {
			s.Remember(n)
		}
		for n := 0; n == 0 || digest(s.index().items) != digest(ref.index().items); n++ {
			if err := converse(s, ref); err != nil || n > 5 {
				t.Fatalf("session %d: %v %s", n, err, diffIndex(ref, s))
			}
		}
		if got, want := render(s.View()), render(ref.View()); got != want {
			t.Fatalf("%s", diffLines(want, got))
		}
	})
}

// A node is forgotten when it has been dead for a week of this node's own time,
// restarts and compactions of the log included; a day alive begins it anew.
func TestAge(t *testing.T) {
	w, id := gone(t)
	ctx, disk := context.Background(), newMemFS(3)
	open := func() *Replica {
		t.Helper()
		r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }}, disk)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	again := func(r *Replica) *Replica {
		t.Helper()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		return open()
	}
	r := open()
	if _, err := r.Submit(ctx, w.raws...); err != nil {
		t.Fatal(err)
	}
	full := r.state.index()
	dead := []stmt.Key{pub("n1"), pub("n2")} // itself: a mistake that must not matter
	days := func(n int, dead ...stmt.Key) {
		t.Helper()
		for range n {
			if err := r.Age(dead, 24*time.Hour); err != nil {
				t.Fatal(err)
			}
		}
	}
	days(6, dead...)
	days(1) // alive
	days(4, dead...)
	r = again(r)
	days(2, dead...)
	if len(r.View().Nodes()) != 2 {
		t.Fatal("forgotten before its time")
	}
	changed := r.changed
	days(1, dead...)
	select {
	case <-changed:
	default:
		t.Error("nobody is told of the new view")
	}
	check := func(when string) {
		t.Helper()
		v := r.View()
		if len(v.Nodes()) != 1 || len(v.Claims(id)) != 0 || len(r.Forgotten()) != 1 || digest(r.state.index().items) != digest(full.items) {
			t.Fatalf("%s: %d nodes, %d claims, forgotten %v", when, len(v.Nodes()), len(v.Claims(id)), r.Forgotten())
		}
	}
	check("after a week")
	r = again(r)
	check("after a restart")
	if err := r.log.compact(r.state.index().statements()); err != nil {
		t.Fatal(err)
	}
	r = again(r)
	check("after the log was compacted")
	if _, err := r.Submit(ctx, newWorld(t).node("n2", 2, 1, Node{})); err != nil || len(r.View().Nodes()) != 2 {
		t.Fatalf("it came back, and is not there (%v)", err)
	}
	r = again(r)
	if len(r.View().Nodes()) != 2 || len(r.Forgotten()) != 0 {
		t.Fatal("a restart forgets who came back")
	}
	days(7, dead...)
	if len(r.Forgotten()) != 1 {
		t.Fatal("it is not forgotten a second time")
	}
	// Revoked for good, it leaves no trace.
	if _, err := r.Submit(ctx, w.member(stmt.MemberBody{Key: pub("n2"), Role: stmt.RoleNode, Revoked: true})); err != nil {
		t.Fatal(err)
	}
	r = again(r)
	if len(r.Forgotten()) != 0 {
		t.Fatal("a husk of a revoked node is kept")
	}
	disk.dir[ageingName].data[7] ^= 1
	if r = again(r); len(r.ageing.dead) != 0 {
		t.Fatal("a damaged file is believed")
	}
}

// A node that is cut off from a large swarm does not take it for dead.
func TestAgeCutOff(t *testing.T) {
	w := newWorld(t)
	disk := newMemFS(4)
	r, err := openReplica(ReplicaConfig{Key: keyOf("n0"), Network: w.net, Root: w.root, Engine: NewModel()}, disk)
	if err != nil {
		t.Fatal(err)
	}
	var all []stmt.Key
	for i := range 2 * fewNodes {
		name := "n" + string(rune('0'+i))
		w.admit(name, stmt.RoleNode)
		w.node(name, 1, 1, Node{})
		all = append(all, pub(name))
	}
	applyAll(r.state, w.raws)
	if err := r.Age(all[1:], 8*24*time.Hour); err != nil || len(r.Forgotten()) != 0 {
		t.Fatalf("%d are forgotten (%v)", len(r.Forgotten()), err)
	}
	if err := r.Age(all[1:fewNodes], 8*24*time.Hour); err != nil || len(r.Forgotten()) != fewNodes-1 {
		t.Fatalf("%d are forgotten (%v)", len(r.Forgotten()), err)
	}
}

func FuzzAgeing(f *testing.F) {
	w, _ := gone(f)
	disk := newMemFS(5)
	r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, disk)
	if err != nil {
		f.Fatal(err)
	}
	applyAll(r.state, w.raws)
	if err := errors.Join(r.Age([]stmt.Key{pub("n2"), pub("n9")}, AgeAfter-time.Hour), r.Age([]stmt.Key{pub("n2")}, time.Hour)); err != nil {
		f.Fatal(err)
	}
	f.Add(disk.dir[ageingName].data)
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := newMemFS(6)
		disk.dir[ageingName] = &inode{data: b}
		r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, disk)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Age(nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	})
}
