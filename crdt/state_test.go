package crdt

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// Any order, duplication and repetition of a set of statements gives equal
// views and equal digests.
func TestAnyOrderConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { checkConverges(t, history(t, false), 1) })
}

// When membership is withdrawn and given back, what was dropped between has to be
// delivered again, which is what anti-entropy does; then it holds as well.
func TestAnyOrderConvergesWithWithdrawals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { checkConverges(t, history(t, true), 2) })
}

func checkConverges(t *rapid.T, w *world, deliveries int) {
	ref := w.state()
	for range deliveries {
		applyAll(ref, w.raws)
	}
	want := render(ref.View())
	for i := range 3 {
		s := w.state()
		for range deliveries {
			for n, raw := range shuffled(t, w.raws) {
				_, _ = s.Apply(raw, time.Time{})
				if n%7 == 0 {
					s.View() // views are made incrementally: look at some between
				}
			}
		}
		if got := render(s.View()); got != want {
			t.Fatalf("order %d gives another view%s\n%s", i, diffLines(want, got), diffIndex(ref, s))
		}
		if digest(s.index().items) != digest(ref.index().items) {
			t.Fatalf("order %d holds other statements: %s", i, diffIndex(ref, s))
		}
	}
	// What a replica stores and sends is enough to make the same again.
	s := w.state()
	applyAll(s, ref.index().statements())
	if got := render(s.View()); got != want {
		t.Fatalf("snapshot gives another view%s", diffLines(want, got))
	}
}

// A deleted instance stays deleted, whoever replays what and when.
func TestDeletedStaysDeleted(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	id, created, err := a.Create(Spec{Name: "hello", Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	set, err := a.Set(id, func(s *Spec) { s.Replicas = 2 })
	if err != nil {
		t.Fatal(err)
	}
	deleted, err := a.Delete(id)
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	applyAll(s, w.raws)
	applyAll(s, created)
	if _, ok := s.View().Instance(id); !ok {
		t.Fatal("the instance is not there before it is deleted")
	}
	applyAll(s, deleted)
	for range 3 {
		applyAll(s, append(set, created...))
	}
	if _, ok := s.View().Instance(id); ok {
		t.Fatal("a replay brought a deleted instance back")
	}
	if _, err := s.Apply(created[1], testNow); !errors.Is(err, ErrStale) {
		t.Fatalf("replayed root: %v, want ErrStale", err)
	}
	if n := s.docs.len(); n != 0 {
		t.Fatalf("%d documents of deleted instances are kept", n)
	}
}

func TestOnlyTheAuthorCounts(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	w.admit("n1", stmt.RoleNode)
	olga := w.author("olga", nil)
	id, raws, err := olga.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	applyAll(s, append(w.raws, raws...))
	before := render(s.View())

	t.Run("another owner's change of my instance", func(t *testing.T) {
		w.admit("eve", stmt.RoleOwner)
		applyAll(s, w.raws)
		st, _ := stmt.Peek(raws[1], w.net)
		forged, err := stmt.Sign(keyOf("eve"), stmt.Statement{Kind: stmt.KindSpec, Network: w.net, Epoch: 9, Seq: 1, Body: st.Body})
		if err != nil {
			t.Fatal(err)
		}
		applyAll(s, [][]byte{forged})
		if got, _ := s.View().Instance(id); got.Epoch != 1 || got.Owner != pub("olga") {
			t.Fatalf("eve changed it: %+v", got)
		}
	})
	t.Run("a claim that names another owner", func(t *testing.T) {
		applyAll(s, [][]byte{w.claim("n1", 1, 1, Claim{Instance: id, Owner: pub("eve"), Phase: ClaimRunning}, false)})
		if c := s.View().Claims(id); len(c) != 0 {
			t.Fatalf("it counts: %+v", c)
		}
	})
	t.Run("a stranger's register", func(t *testing.T) {
		_, err := s.Apply(w.node("stranger", 1, 1, Node{}), testNow)
		if !errors.Is(err, ErrNotMember) {
			t.Fatalf("%v, want ErrNotMember", err)
		}
	})
	t.Run("a member's revocation of another", func(t *testing.T) {
		raw, err := stmt.SignMember(keyOf("eve"), w.net, stmt.MemberBody{Key: pub("olga"), Revoked: true}, nil, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(raw, testNow); !errors.Is(err, stmt.ErrAuthority) {
			t.Fatalf("%v, want ErrAuthority", err)
		}
	})
	t.Run("a statement of another network", func(t *testing.T) {
		other := stmt.NewNetworkID("other", w.root)
		raw, err := stmt.SignMember(keyOf("root"), other, stmt.MemberBody{Key: pub("x"), Role: stmt.RoleNode}, nil, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(raw, testNow); !errors.Is(err, stmt.ErrNetwork) {
			t.Fatalf("%v, want ErrNetwork", err)
		}
	})
	if !strings.HasPrefix(render(s.View()), strings.SplitAfter(before, "\n")[0]) {
		t.Fatalf("the instance changed:\n%s\nbefore:\n%s", render(s.View()), before)
	}
}

func TestMembership(t *testing.T) {
	w := newWorld(t)
	seed := keyOf("invite").Seed()
	invite, err := stmt.NewInvite(keyOf("root"), w.net, seed, stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode}, Expires: testNow.Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	ticket := stmt.Ticket{Name: "test", Root: w.root, InviteSeed: seed, Invite: invite}
	join, err := ticket.Join(pub("n1"), stmt.RoleNode, testNow)
	if err != nil {
		t.Fatal(err)
	}
	node := w.node("n1", 1, 1, Node{Version: "v"})

	t.Run("by invite", func(t *testing.T) {
		s := w.state()
		if _, err := s.Apply(node, testNow); !errors.Is(err, ErrNotMember) {
			t.Fatalf("before: %v", err)
		}
		if changed, err := s.Apply(join, testNow); !changed || err != nil {
			t.Fatalf("join: %v %v", changed, err)
		}
		if len(s.View().Nodes()) != 1 {
			t.Fatal("the register that waited for its author's admission is not there")
		}
	})
	t.Run("an invite that is over admits nobody new", func(t *testing.T) {
		s := w.state()
		if _, err := s.Apply(join, testNow.Add(2*time.Hour)); !errors.Is(err, stmt.ErrExpired) {
			t.Fatalf("%v, want ErrExpired", err)
		}
		if changed, err := s.Apply(join, time.Time{}); !changed || err != nil {
			t.Fatalf("relayed by a member: %v %v", changed, err)
		}
	})
	t.Run("revocation wins, before and after", func(t *testing.T) {
		revoke := w.member(stmt.MemberBody{Key: pub("n1"), Revoked: true})
		again := w.admit("n1", stmt.RoleNode)
		for _, order := range [][][]byte{{join, node, revoke, again}, {revoke, again, join, node}} {
			s := w.state()
			applyAll(s, order)
			if v := s.View(); v.IsMember(pub("n1"), stmt.RoleNode) || len(v.Nodes()) != 0 {
				t.Fatal("a revoked node counts")
			}
		}
	})
	t.Run("revoking an invite ends whom it admitted", func(t *testing.T) {
		s := w.state()
		applyAll(s, [][]byte{join, node, w.member(stmt.MemberBody{Key: pub("invite"), Revoked: true})})
		if s.View().IsMember(pub("n1"), stmt.RoleNode) {
			t.Fatal("still a member")
		}
		applyAll(s, [][]byte{w.admit("n1", stmt.RoleNode)})
		if len(s.View().Nodes()) != 1 {
			t.Fatal("admitted by the root, but its register did not come back")
		}
	})
	t.Run("an operator takes its node out for good", func(t *testing.T) {
		out := w.disown("op", "n1")
		lower := w.disown("ann", "n1")
		again := w.admit("n1", stmt.RoleNode)
		for _, order := range [][][]byte{{join, node, out, again, lower}, {out, lower, node, again, join}, {lower, again, join, node, out}} {
			s := w.state()
			applyAll(s, order)
			if v := s.View(); v.IsMember(pub("n1"), stmt.RoleNode) || len(v.Nodes()) != 0 || !v.Revoked(pub("n1")) {
				t.Fatal("the node counts")
			}
			if n := len(s.index().items); n != 3 {
				t.Fatalf("%d statements are held: two admissions and one revocation are all there is", n)
			}
			applyAll(s, [][]byte{w.admit("n1", stmt.RoleOwner)})
			if !s.View().IsMember(pub("n1"), stmt.RoleOwner) {
				t.Fatal("its operator has taken its other role as well")
			}
			applyAll(s, [][]byte{w.member(stmt.MemberBody{Key: pub("n1"), Revoked: true})})
			if n := len(s.index().items); n != 1 {
				t.Fatalf("%d statements are held where the root's word is all there is", n)
			}
		}
	})
	t.Run("an operator of no member is waited for, within bounds", func(t *testing.T) {
		s := w.state()
		if _, err := s.Apply(w.disown("op", "n1"), testNow); !errors.Is(err, ErrNotMember) || len(s.index().items) != 0 {
			t.Fatalf("%v, %d held", err, len(s.index().items))
		}
	})
	t.Run("wildcard", func(t *testing.T) {
		s := w.state()
		if s.View().OwnerAllowed(pub("anyone")) {
			t.Fatal("anyone is an owner")
		}
		applyAll(s, [][]byte{w.member(stmt.MemberBody{AnyOwner: true, Role: stmt.RoleOwner})})
		if v := s.View(); !v.OwnerAllowed(pub("anyone")) || v.IsMember(pub("anyone"), stmt.RoleNode) {
			t.Fatal("the wildcard does not admit owners, or admits nodes")
		}
	})
	t.Run("operators allow-list", func(t *testing.T) {
		s := w.state()
		applyAll(s, [][]byte{w.member(stmt.MemberBody{Key: pub("n2"), Role: stmt.RoleNode, Operator: pub("op")}), w.admit("n3", stmt.RoleNode)})
		spec := &Spec{Operators: []stmt.Key{pub("op")}}
		if v := s.View(); !v.MayRun(spec, pub("n2")) || v.MayRun(spec, pub("n3")) {
			t.Fatal("the operators list is not followed")
		}
	})
}

// Two contents for one change freeze the document at its root, whichever comes
// first and even when what they depend on is missing; a higher epoch ends it.
func TestEquivocationFreezes(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	id, created, err := a.Create(Spec{Name: "hello", Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	// Two authors with one actor: a device restored from a backup.
	twin := func(replicas int) [][]byte {
		b, err := newAuthor(keyOf("olga"), pub("olga"), w.net, created, seeded(99))
		if err != nil {
			t.Fatal(err)
		}
		b.Now = a.Now
		var out [][]byte
		for i := range 2 {
			raws, err := b.Set(id, func(s *Spec) { s.Replicas = replicas + i })
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, raws...)
		}
		return out
	}
	one, two := twin(5), twin(7)
	honest, err := a.Set(id, func(s *Spec) { s.Region = "eu" })
	if err != nil {
		t.Fatal(err)
	}
	all := append(append(append(append([][]byte{}, w.raws...), created...), honest...), append(one, two...)...)
	missing := append(append([][]byte{}, w.raws...), append(created, one[1], two[1])...)
	rapid.Check(t, func(t *rapid.T) {
		for _, set := range [][][]byte{all, missing} {
			s := w.state()
			applyAll(s, shuffled(t, set))
			spec, ok := s.View().Instance(id)
			if !ok || !spec.Frozen || spec.Replicas != 1 || spec.Region != "" {
				t.Fatalf("not frozen at its root: %+v", spec)
			}
			fresh := w.state()
			applyAll(fresh, s.index().statements())
			if got, _ := fresh.View().Instance(id); !got.Frozen {
				t.Fatal("the proof does not convince a new replica")
			}
			if digest(fresh.index().items) != digest(s.index().items) {
				t.Fatal("digests of two frozen replicas differ")
			}
			fix := w.author("olga", s.OwnerStatements(pub("olga")))
			raws, err := fix.Set(id, func(s *Spec) { s.Replicas = 3 })
			if err != nil {
				t.Fatalf("re-root: %v", err)
			}
			applyAll(s, raws)
			if got, _ := s.View().Instance(id); got.Frozen || got.Replicas != 3 || got.Epoch != 2 {
				t.Fatalf("a higher epoch does not end it: %+v", got)
			}
		}
	})
}

// History does not grow without bound, and re-rooting loses nothing.
func TestReroot(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	id, raws, err := a.Create(Spec{Name: "hello", Env: map[string]string{"A": "1", "B": "2"}})
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	applyAll(s, append(w.raws, raws...))
	for i := range 300 {
		raws, err := a.Set(id, func(s *Spec) {
			s.Restart = uint64(i + 1)
			delete(s.Env, "B")
		})
		if err != nil {
			t.Fatal(err)
		}
		applyAll(s, raws)
		if n := len(s.docs.get(mustDoc(t, id)).order); n > RerootChanges {
			t.Fatalf("%d changes are held after %d", n, i)
		}
	}
	got, _ := s.View().Instance(id)
	if got.Restart != 300 || got.Generation != 301 || len(got.Env) != 1 || got.Epoch < 4 {
		t.Fatalf("after 300 changes: %+v", got)
	}
}

// A document that one device changes again and again without a pause is one
// statement when it is at rest, and what another says meanwhile is told of.
func TestBurstIsReRooted(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	id, raws, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	s.tellOmitted = true
	applyAll(s, append(w.raws, raws...))
	doc := mustDoc(t, id)
	var behind *Author
	for i := range 100 {
		if i == 90 {
			behind = w.author("olga", s.OwnerStatements(pub("olga")))
		}
		raws, err := a.Set(id, func(s *Spec) { s.Restart = uint64(i + 1) })
		if err != nil {
			t.Fatal(err)
		}
		applyAll(s, append(raws, raws...))
		if n := len(s.docs.get(doc).order); n > burstChanges+1 || i > burstChanges && n != 1 {
			t.Fatalf("%d statements are held after %d changes", n, i+1)
		}
	}
	got, _ := s.View().Instance(id)
	if got.Restart != 100 || got.Generation != 101 {
		t.Fatalf("after 100 changes: %+v", got)
	}
	// The first after a pause of the others is a change again: they may be at work.
	next := w.author("olga", s.OwnerStatements(pub("olga")))
	if raws, err = next.Set(id, func(s *Spec) { s.Region = "eu" }); err != nil {
		t.Fatal(err)
	}
	applyAll(s, raws)
	if n := len(s.docs.get(doc).order); n != 2 {
		t.Errorf("%d statements after a change by another device", n)
	}
	// What was said on an epoch that the burst has ended meanwhile is told of.
	if raws, err = behind.Set(id, func(s *Spec) { s.Replicas = 7 }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(raws[0], testNow); !errors.Is(err, ErrStale) {
		t.Errorf("a change of an epoch that is over: %v", err)
	}
	if len(s.omitted) != 1 || s.omitted[0].id != mustID(t, raws[0], w) {
		t.Errorf("told of %+v", s.omitted)
	}
}

func mustDoc(t interface {
	Helper()
	Fatal(...any)
}, id string) DocID {
	t.Helper()
	d, err := ParseDocID(id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What a newer version says is kept, relayed and, when critical, respected.
func TestUnknownKeys(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	critical, _ := stmt.Marshal([]string{"tpm", "name"})
	id, raws, err := a.Create(Spec{Name: "hello", Unknown: map[string][]byte{"tpm": {0xf5}, keyCritical: critical}})
	if err != nil {
		t.Fatal(err)
	}
	more, err := a.Set(id, func(s *Spec) { s.Replicas = 3 })
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	applyAll(s, append(append(w.raws, raws...), more...))
	got, _ := s.View().Instance(id)
	if string(got.Unknown["tpm"]) != "\xf5" || fmt.Sprint(got.Critical) != "[tpm]" || got.Replicas != 3 {
		t.Fatalf("unknown %x, critical %v", got.Unknown, got.Critical)
	}
}
