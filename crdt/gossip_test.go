package crdt

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// What a gossip validator passes on, and what it keeps.
func TestValidate(t *testing.T) {
	w, n := newWorld(t), newFakeNet()
	r, _ := start(t, w, n, "n1", t.TempDir())
	from := peer.ID(pub("n9").PeerID())
	ctx := context.Background()
	if _, err := r.Submit(ctx, w.admit("n9", stmt.RoleNode)); err != nil {
		t.Fatal(err)
	}
	msg := func(raws ...[]byte) []byte {
		b, err := encodeGossip(raws)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	admit := w.admit("n2", stmt.RoleNode)
	forged := append([]byte{}, w.admit("n3", stmt.RoleNode)...)
	forged[len(forged)-1] ^= 1
	early := w.node("n4", 1, 1, Node{})
	seed := keyOf("invite").Seed()
	over, err := stmt.NewInvite(keyOf("root"), w.net, seed, stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode}, Expires: time.Now().Add(-time.Minute).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	expired, err := stmt.SignMember(keyOf("invite"), w.net, stmt.MemberBody{Key: pub("n5"), Role: stmt.RoleNode}, over, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		msg  []byte
		want bool
	}{
		{"news", msg(admit), true},
		{"the same again", msg(admit), false},
		{"a forged statement beside good news", msg(w.admit("n6", stmt.RoleNode), forged), false},
		{"a register before its author's admission", msg(early), false},
		{"an admission by an invite that is over", msg(expired), false},
		{"no message", []byte{0x01}, false},
		{"nothing", msg(), false},
		{"too large", make([]byte, MaxGossip+1), false},
	} {
		if got := r.validate(ctx, from, tt.msg); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if r.validate(ctx, peer.ID(pub("n3").PeerID()), msg(w.admit("n7", stmt.RoleNode))) {
		t.Error("a neighbour that is no member is heard")
	}
	if _, err := r.Submit(ctx, w.member(stmt.MemberBody{Key: pub("n9"), Revoked: true})); err != nil {
		t.Fatal(err)
	}
	if r.validate(ctx, from, msg(w.admit("n8", stmt.RoleNode))) {
		t.Error("a revoked neighbour is heard")
	}
	if !r.validate(ctx, r.self, msg(admit)) {
		t.Error("own messages are not passed on")
	}
	if v := r.View(); v.IsMember(pub("n3"), stmt.RoleNode) || v.IsMember(pub("n5"), stmt.RoleNode) || !v.IsMember(pub("n2"), stmt.RoleNode) {
		t.Error("the wrong ones are members")
	}
}

func TestRates(t *testing.T) {
	r := newRates[string](10, 5)
	now := testNow
	for i := range 5 {
		if !r.take("a", 1, now) {
			t.Fatalf("burst ends after %d", i)
		}
	}
	if r.take("a", 1, now) {
		t.Error("more than the burst")
	}
	if !r.take("b", 1, now) {
		t.Error("one neighbour spends another's tokens")
	}
	if now = now.Add(100 * time.Millisecond); !r.take("a", 1, now) || r.take("a", 1, now) {
		t.Error("a tenth of a second does not give one token of ten a second")
	}
	for i := range 2 * maxRateCounters {
		r.take(string(rune(i)), 1, now)
	}
	if len(r.tokens) > maxRateCounters {
		t.Errorf("%d counters", len(r.tokens))
	}
}

// Whoever makes up names frees nobody who has taken much, himself least of all,
// and costs no more than the bound.
func TestRatesKeepWhoTookMuch(t *testing.T) {
	r := newRates[int](1, 10)
	if !r.take(-1, 10, testNow) || r.take(-1, 1, testNow) {
		t.Fatal("the burst does not bound")
	}
	for i := range 3 * maxRateCounters {
		if !r.take(i, 1, testNow) {
			t.Fatalf("name %d has no burst of its own", i)
		}
	}
	if len(r.tokens) != maxRateCounters {
		t.Errorf("%d names are kept", len(r.tokens))
	}
	if r.take(-1, 1, testNow) {
		t.Error("what one has taken is forgotten for names that have taken less")
	}
	if !r.take(-1, 1, testNow.Add(time.Second)) {
		t.Error("it gets no more with time")
	}
}
