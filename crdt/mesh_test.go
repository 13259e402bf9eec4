package crdt

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// A register says what its node is on the mesh; what it says of operators is
// read, and counts as nothing when it is not the node's own word.
func TestNodeOnTheMesh(t *testing.T) {
	w := newWorld(t)
	mine, err := stmt.SignOperators(keyOf("n1"), w.net, []stmt.Key{pub("op"), pub("other")})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		by    []byte
		named int
	}{{mine, 2}, {nil, 0}, {[]byte{1}, 0}, {mine[:len(mine)-1], 0}} {
		s := w.state()
		n := Node{MeshKey: pub("mesh"), Address4: netip.MustParseAddr("10.129.2.3"), Operators: tc.by}
		for _, raw := range [][]byte{w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode), w.node("n1", 1, 1, n), w.node("n2", 1, 1, n)} {
			if _, err := s.Apply(raw, testNow); err != nil {
				t.Fatal(err)
			}
		}
		for _, got := range s.View().Nodes() {
			want := tc.named
			if got.Key != pub("n1") {
				want = 0 // another's word
			}
			if got.MeshKey != n.MeshKey || got.Address4 != n.Address4 || len(got.Named) != want || !slices.Equal(got.Operators, tc.by) {
				t.Errorf("%d bytes of operators: %+v", len(tc.by), got)
			}
		}
	}
	s := w.state()
	if _, err := s.Apply(w.admit("n1", stmt.RoleNode), testNow); err != nil {
		t.Fatal(err)
	}
	body, err := stmt.Marshal(nodeBody{Mesh4: []byte{10, 129, 2}})
	if _, err := s.Apply(w.register("n1", stmt.KindNode, 1, 1, body, err), testNow); !errors.Is(err, ErrInvalid) {
		t.Errorf("an address of three bytes: %v", err)
	}
}

// Who was admitted when is the root's to say: by its own hand first, then by the
// invite that ends first.
func TestRank(t *testing.T) {
	w := newWorld(t)
	s := w.state()
	admit := func(name, seed string, after time.Duration) {
		expires := testNow.Add(after).Unix()
		invite, err := stmt.NewInvite(keyOf("root"), w.net, keyOf(seed).Seed(), stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode, stmt.RoleOwner}, Expires: expires})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := stmt.SignMember(keyOf(seed), w.net, stmt.MemberBody{Key: pub(name), Role: stmt.RoleNode}, invite, 0, 0)
		if err == nil {
			_, err = s.Apply(raw, testNow)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(name string, want uint64) {
		t.Helper()
		if got := s.View().Rank(pub(name)); got != want {
			t.Errorf("%s has rank %d, want %d", name, got, want)
		}
	}
	admit("early", "a", time.Hour)
	admit("late", "b", 2*time.Hour)
	admit("both", "b", 2*time.Hour)
	admit("both", "a", time.Hour)
	check("early", uint64(testNow.Unix()+3600))
	check("both", uint64(testNow.Unix()+3600))
	check("late", uint64(testNow.Unix()+7200))
	check("root", 0)
	check("stranger", math.MaxUint64)
	for _, raw := range [][]byte{w.admit("late", stmt.RoleNode), w.member(stmt.MemberBody{Key: pub("a"), Revoked: true})} {
		if _, err := s.Apply(raw, testNow); err != nil {
			t.Fatal(err)
		}
	}
	check("late", 0)
	check("early", math.MaxUint64)
	check("both", uint64(testNow.Unix()+7200))
}
