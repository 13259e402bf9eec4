package crdt

import (
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// What bounds an owner follows from who admitted it, in whatever order that came.
func TestQuota(t *testing.T) {
	w := newWorld(t)
	invite := func(name string, q stmt.Quota) func(owner string) []byte {
		raw, err := stmt.NewInvite(keyOf("root"), w.net, keyOf(name).Seed(), stmt.InviteBody{Roles: []stmt.Role{stmt.RoleOwner}, Expires: testNow.Unix(), Quota: q})
		if err != nil {
			t.Fatal(err)
		}
		return func(owner string) []byte {
			// The quota that an invited owner gives itself is nothing.
			raw, err := stmt.SignMember(keyOf(name), w.net, stmt.MemberBody{Key: pub(owner), Role: stmt.RoleOwner, Quota: stmt.Quota{Instances: 99}}, raw, 7, 7)
			return w.must(raw, err)
		}
	}
	small, large := invite("small", stmt.Quota{Instances: 2, Memory: 1 << 30, CPUs: 4}), invite("large", stmt.Quota{Instances: 5, CPUs: 1})
	free := invite("free", stmt.Quota{})
	root := func(role stmt.Role, q stmt.Quota) []byte {
		return w.member(stmt.MemberBody{Key: pub("olga"), Role: role, Quota: q})
	}
	anyOwner := func(q stmt.Quota) []byte {
		return w.member(stmt.MemberBody{AnyOwner: true, Role: stmt.RoleOwner, Quota: q})
	}
	four, six := stmt.Quota{Instances: 4}, stmt.Quota{Instances: 6, Disk: 1}
	for _, tt := range []struct {
		name string
		raws [][]byte
		want stmt.Quota
	}{
		{"a stranger", nil, stmt.Quota{}},
		{"an invite", [][]byte{small("olga")}, stmt.Quota{Instances: 2, Memory: 1 << 30, CPUs: 4}},
		{"two invites: the larger of each", [][]byte{small("olga"), large("olga")}, stmt.Quota{Instances: 5, CPUs: 4}},
		{"an invite without a bound", [][]byte{small("olga"), free("olga")}, stmt.Quota{}},
		{"the root before invites", [][]byte{large("olga"), root(stmt.RoleOwner, four)}, four},
		{"the root's last word", [][]byte{root(stmt.RoleOwner, six), root(stmt.RoleOwner, four)}, four},
		{"the root lifts it", [][]byte{root(stmt.RoleOwner, four), root(stmt.RoleOwner, stmt.Quota{})}, stmt.Quota{}},
		{"two roles by the root", [][]byte{root(stmt.RoleOwner, four), root(stmt.RoleOperator, six)}, stmt.Quota{Instances: 6}},
		{"a node's admission bounds no owner", [][]byte{small("olga"), root(stmt.RoleNode, four)}, stmt.Quota{Instances: 2, Memory: 1 << 30, CPUs: 4}},
		{"any owner", [][]byte{anyOwner(four)}, four},
		{"any owner, and an invite without a bound", [][]byte{anyOwner(four), free("olga")}, stmt.Quota{}},
		{"any owner, and an invite", [][]byte{anyOwner(four), small("olga")}, stmt.Quota{Instances: 2, Memory: 1 << 30, CPUs: 4}},
	} {
		orders := [][][]byte{tt.raws, {}}
		for i := range tt.raws {
			orders[1] = append(orders[1], tt.raws[len(tt.raws)-1-i])
		}
		for _, raws := range orders {
			s := w.state()
			s.View()
			for _, raw := range raws {
				_, _ = s.Apply(raw, time.Time{}) // an older word of the root is stale
			}
			got, bounded := s.View().Quota(pub("olga"))
			if got != tt.want || bounded != (tt.want != stmt.Quota{}) {
				t.Errorf("%s: %+v %v, want %+v", tt.name, got, bounded, tt.want)
			}
			if _, bounded := s.View().Quota(w.root); bounded {
				t.Errorf("%s: the root is bounded", tt.name)
			}
		}
	}
	if _, err := stmt.CheckMember(root(stmt.RoleOwner, stmt.Quota{Instances: -1}), w.net, w.root); err == nil {
		t.Error("a negative quota is taken")
	}
}
