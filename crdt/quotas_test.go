package crdt

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// drawQuotas draws bounds that a short history goes over.
func drawQuotas(t *rapid.T) quotas {
	q := standard
	q.claims = rapid.IntRange(1, 2).Draw(t, "claims")
	q.bases = rapid.IntRange(1, 2).Draw(t, "bases")
	q.docs = rapid.IntRange(1, 2).Draw(t, "docs")
	return q
}

// Over the bounds too, any order and repetition of statements gives equal views.
// What was pushed out by something that a later statement ends has to come again,
// which is what anti-entropy does.
func TestAnyOrderConvergesOverQuotas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, false)
		w.most = drawQuotas(t)
		checkConverges(t, w, 3)
	})
}

// Replicas that each have heard another part, in another order, and more than fits,
// come to hold the same by sessions, and then move nothing more.
func TestSessionsConvergeOverQuotas(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := history(rt, false)
		w.most = drawQuotas(rt)
		states := make([]*State, 3)
		for i := range states {
			states[i] = w.state()
			raws := shuffled(rt, w.raws)
			applyAll(states[i], raws[:rapid.IntRange(len(raws)/2, len(raws)).Draw(rt, "heard")])
		}
		settle(t, rt, states)
		for _, s := range states[1:] {
			if digest(s.index().items) != digest(states[0].index().items) || render(s.View()) != render(states[0].View()) {
				rt.Fatalf("not equal: %s", diffIndex(states[0], s))
			}
		}
	})
}

// settle holds sessions between states until they change nothing.
func settle(t *testing.T, rt *rapid.T, states []*State) {
	for round, quiet := 0, 0; quiet < len(states); round++ {
		if round > 12*len(states) {
			rt.Fatalf("no end of it: %s", diffIndex(states[0], states[1]))
		}
		a, b := states[round%len(states)], states[(round+1)%len(states)]
		before := a.changes + b.changes
		if countBytes(t, a, b); a.changes+b.changes != before {
			quiet = 0
		} else {
			quiet++
		}
	}
}

// The lowest names are held, whichever came first; what an author says beyond its
// bounds takes nothing from another, nor from a listed instance.
func TestQuotasHoldTheLowestNames(t *testing.T) {
	w := newWorld(t)
	w.most.claims, w.most.bases, w.most.docs = 2, 2, 2
	for _, n := range []string{"n1", "n2"} {
		w.admit(n, stmt.RoleNode)
	}
	w.admit("olga", stmt.RoleOwner)
	w.admit("otto", stmt.RoleOwner)
	id, _, err := w.create("otto")
	if err != nil {
		t.Fatal(err)
	}
	w.claim("n2", 1, 1, Claim{Instance: id, Owner: pub("otto"), Phase: ClaimRunning}, false)
	setup := len(w.raws)
	for i := range 5 {
		n := byte(i)
		w.claim("n1", 1, uint64(10-i), Claim{Instance: DocID{n}.String(), Owner: pub("otto"), Phase: ClaimRunning}, false)
		w.base("n1", 1, fmt.Sprint("base", i))
	}
	a := w.author("olga", nil)
	var docs []DocID
	for range 6 { // the first is listed, the rest are not
		id, raws, err := a.Create(Spec{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, mustDoc(t, id))
		if len(docs) > 1 {
			raws = raws[1:]
		}
		w.raws = append(w.raws, raws...)
	}
	rest := docs[1:]
	slices.SortFunc(rest, compareDocs)
	back := slices.Clone(w.raws)
	slices.Reverse(back[setup:])
	for name, raws := range map[string][][]byte{"in order": w.raws, "backwards": back} {
		s := w.state()
		for range 2 {
			applyAll(s, raws)
		}
		claims := s.View().ClaimsBy(pub("n1"))
		if len(claims) != 2 || claims[0].Instance != (DocID{0}).String() || claims[1].Instance != (DocID{1}).String() {
			t.Errorf("%s: claims %+v", name, claims)
		}
		if b := s.View().Bases(); len(b) != 2 || b[0].Name != "base0" || b[1].Name != "base1" {
			t.Errorf("%s: bases %+v", name, b)
		}
		if s.docs.get(docs[0]) == nil || s.docs.get(rest[0]) == nil || len(s.docsOf[pub("olga")]) != 2 {
			t.Errorf("%s: the listed document and the lowest of the others are not the ones held", name)
		}
		if len(s.View().Claims(id)) != 1 {
			t.Errorf("%s: what one author says beyond its bounds costs another's", name)
		}
	}
}

// An invite that admits too many lets nobody more in where they present
// themselves; what a member relays is taken, so that members agree, and nobody who
// is a member is pushed out.
func TestInviteQuota(t *testing.T) {
	w := newWorld(t)
	w.most.invited, w.most.relayed = 2, 3
	invite, err := stmt.NewInvite(keyOf("root"), w.net, keyOf("invite").Seed(), stmt.InviteBody{Roles: []stmt.Role{stmt.RoleOwner}, Expires: testNow.Unix() + 1})
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	for i, step := range []struct {
		now time.Time
		err error
	}{{testNow, nil}, {testNow, nil}, {testNow, ErrQuota}, {time.Time{}, nil}, {time.Time{}, ErrQuota}} {
		raw, err := stmt.SignMember(keyOf("invite"), w.net, stmt.MemberBody{Key: stmt.Key{9 - byte(i)}, Role: stmt.RoleOwner}, invite, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(raw, step.now); !errors.Is(err, step.err) {
			t.Errorf("admission %d: %v, want %v", i, err, step.err)
		}
	}
	if v := s.View(); len(v.Members()) != 3 || !v.IsMember(stmt.Key{9}, stmt.RoleOwner) {
		t.Errorf("members %v", v.Members())
	}
}
