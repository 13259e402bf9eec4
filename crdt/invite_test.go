package crdt

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// An invite that is over admits nobody new. It takes nothing from who was
// admitted by it: not from the node itself when its disk is lost, and not in the
// eyes of a newcomer whose ticket vouches for it.
func TestInviteBoundsJoining(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	seed := keyOf("invite").Seed()
	invite, err := stmt.NewInvite(keyOf("root"), w.net, seed, stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode}, Expires: testNow.Unix()})
	if err != nil {
		t.Fatal(err)
	}
	admission := func(name string) []byte {
		return w.must(stmt.SignMember(keyOf("invite"), w.net, stmt.MemberBody{Key: pub(name), Role: stmt.RoleNode}, invite, 0, 0))
	}
	open := func(name string, now time.Time) *Replica {
		r, err := Open(ReplicaConfig{Dir: t.TempDir(), Key: keyOf(name), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	after := testNow.Add(time.Hour)
	old := open("old", after)
	if _, err := old.Submit(ctx, admission("old")); err != nil || !old.View().IsMember(pub("old"), stmt.RoleNode) {
		t.Errorf("a member that lost its disk cannot start: %v", err)
	}
	if _, err := old.Submit(ctx, admission("late")); !errors.Is(err, stmt.ErrExpired) {
		t.Errorf("an ended invite admits another: %v", err)
	}
	fresh := open("fresh", after)
	if _, _, err := fresh.Admit(ctx, admission("old"), stmt.Key{}); !errors.Is(err, stmt.ErrExpired) {
		t.Errorf("an ended invite admits whom nobody vouches for: %v", err)
	}
	if _, _, err := fresh.Admit(ctx, admission("late"), pub("old")); !errors.Is(err, stmt.ErrExpired) {
		t.Errorf("vouching for one admits another: %v", err)
	}
	if key, role, err := fresh.Admit(ctx, admission("old"), pub("old")); err != nil || key != pub("old") || role != stmt.RoleNode {
		t.Errorf("a newcomer does not let in whom its ticket names: %v", err)
	}
	if _, _, err := fresh.Admit(ctx, admission("old"), stmt.Key{}); err != nil {
		t.Errorf("a member is refused: %v", err)
	}
	if _, err := fresh.Submit(ctx, w.member(stmt.MemberBody{Key: pub("old"), Revoked: true})); err != nil {
		t.Fatal(err)
	}
	if _, _, err := fresh.Admit(ctx, admission("old"), pub("old")); err == nil {
		t.Error("vouching overrides a revocation")
	}
}
