package crdt

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// Statements checked once may be applied to many States, which end as those that
// check each for themselves.
func TestApplyVerifiedIsApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, true)
		raws := shuffled(t, w.raws)
		a, b, c := w.state(), w.state(), w.state()
		for _, raw := range raws {
			v, err := stmt.Check(raw, w.net)
			if err != nil {
				t.Fatalf("check: %v", err)
			}
			changed, err := a.Apply(raw, time.Time{})
			for _, s := range []*State{b, c} {
				if got, gotErr := s.ApplyVerified(v, time.Time{}); got != changed || (err == nil) != (gotErr == nil) {
					t.Fatalf("ApplyVerified = %v, %v; Apply = %v, %v", got, gotErr, changed, err)
				}
			}
			if a.Fingerprint() != b.Fingerprint() {
				t.Fatal("fingerprints of equal states differ")
			}
		}
		if render(a.View()) != render(b.View()) || render(b.View()) != render(c.View()) {
			t.Fatal("views differ")
		}
	})
}

func TestApplyVerifiedWantsProofForThisNetwork(t *testing.T) {
	w, other := newWorld(t), stmt.NewNetworkID("other", pub("root"))
	raw, err := stmt.SignMember(keyOf("root"), other, stmt.MemberBody{Key: pub("n1"), Role: stmt.RoleNode}, nil, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := stmt.Check(raw, other)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]stmt.Verified{"zero": {}, "foreign": foreign} {
		if _, err := w.state().ApplyVerified(v, time.Time{}); !errors.Is(err, stmt.ErrNetwork) {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged := append([]byte(nil), raw...)
	forged[len(forged)-1] ^= 1
	if v, err := stmt.Check(forged, other); !errors.Is(err, stmt.ErrSignature) || v.Statement() != nil {
		t.Errorf("forged: %v, %v", v, err)
	}
}
