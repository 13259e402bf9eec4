package crdt

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// Whoever applies an owner's mesh statements knows of its instances, devices and
// claims what the swarm does, whatever has happened in it; and holds nothing of
// other owners.
func TestMeshStatementsSayWhatTheStateSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, false)
		s := w.state()
		applyAll(s, w.raws)
		for _, owner := range []stmt.Key{pub("olga"), pub("otto")} {
			fresh := w.state()
			for _, raw := range s.MeshStatements(owner) {
				st, err := stmt.Verify(raw, w.net)
				if err != nil {
					t.Fatal(err)
				}
				if !Concerns(st, owner) {
					t.Fatalf("a %s statement of %s is none of this owner's", st.Kind, st.Author)
				}
				if _, err := fresh.Apply(raw, time.Time{}); err != nil {
					t.Fatalf("a %s statement of %s: %v", st.Kind, st.Author, err)
				}
			}
			if got, want := about(fresh.View(), owner), about(s.View(), owner); got != want {
				t.Fatalf("proves\n%s\nwant\n%s", got, want)
			}
		}
	})
}

// about renders what a View says of an owner, and of who runs its instances.
func about(v *View, owner stmt.Key) string {
	out := fmt.Sprintln(v.IsMember(owner, stmt.RoleOwner), v.Devices(owner))
	for _, s := range v.InstancesOf(owner) {
		out += fmt.Sprintf("%+v\n", s)
		for _, c := range v.Claims(s.ID) {
			if c.Owner == owner {
				out += fmt.Sprintf("  %+v %v %s\n", c, v.MayRun(&s, c.Node), v.OperatorOf(c.Node))
			}
		}
	}
	return out
}

func TestMeshStatementsTakeOut(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	w.admit("n1", stmt.RoleNode)
	a := w.author("olga", nil)
	id, created, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	applyAll(s, slices.Concat(w.raws, created))
	applyAll(s, [][]byte{w.claim("n1", 1, 1, Claim{Instance: id, Owner: pub("olga"), Phase: ClaimRunning}, false)})
	before := len(s.MeshStatements(pub("olga")))
	applyAll(s, [][]byte{w.claim("n1", 1, 2, Claim{Instance: id, Owner: pub("olga")}, true)})
	// The claim, and the admission of who made it.
	if got := len(s.MeshStatements(pub("olga"))); got != before-2 {
		t.Errorf("%d statements, were %d", got, before)
	}
	applyAll(s, [][]byte{w.member(stmt.MemberBody{Key: pub("olga"), Revoked: true})})
	fresh := w.state()
	applyAll(fresh, created)
	applyAll(fresh, s.MeshStatements(pub("olga")))
	if len(fresh.View().Instances()) != 0 {
		t.Error("the owner's end is not told")
	}
}
