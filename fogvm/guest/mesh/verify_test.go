package mesh

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

const all = "laptop=laptop app/1=guest-two"

// A guest has the peers that the swarm gives it, and hears of each change.
func TestPeersFollowTheSwarm(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   string
	}{
		{"as it is", func(*world) {}, all},
		{"a phone", func(w *world) {
			w.all(w.olga.SetDevice(crdt.Device{Key: pub("phone"), Name: "phone", MeshKey: meshKey("phone")}))
		}, "laptop=laptop phone=phone app/1=guest-two"},
		{"the laptop is lost", func(w *world) { w.all(w.olga.RemoveDevice(pub("laptop"))) }, "app/1=guest-two"},
		{"another instance", func(w *world) {
			id, raws, err := w.olga.Create(crdt.Spec{Name: "db", Replicas: 1})
			w.all(raws, err)
			w.claim("three", crdt.Claim{Instance: id, MeshKey: text(meshKey("guest-three"))})
		}, ""}, // order depends on the instance's ID: compared below
		{"the other replica is begun anew", func(w *world) { w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("again"))}) }, "laptop=laptop app/1=again"},
		{"the other replica moves", func(w *world) {
			w.claim("three", crdt.Claim{Slot: 1, Generation: 2, MeshKey: text(meshKey("guest-three"))})
		}, "laptop=laptop app/1=guest-three app/1=guest-two"},
		{"the other node drops it", func(w *world) {
			w.says("two", crdt.Claim{Slot: 1})
			if err := w.node["two"].SetClaims(context.Background(), nil); err != nil {
				w.t.Fatal(err)
			}
			w.all(w.node["two"].MeshStatements(pub("olga")), nil)
			w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Revoked: true})
		}, "laptop=laptop"},
		{"the other node is taken out", func(w *world) { w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Revoked: true}) }, "laptop=laptop"},
		{"only operators of the owner's", func(w *world) {
			w.all(w.olga.Set(w.id, func(s *crdt.Spec) { s.Operators = []stmt.Key{pub("one")} }))
		}, "laptop=laptop"},
		{"scaled down", func(w *world) { w.all(w.olga.Set(w.id, func(s *crdt.Spec) { s.Replicas = 1 })) }, "laptop=laptop"},
		{"deleted", func(w *world) { w.all(w.olga.Delete(w.id)) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			v := NewVerifier(w.pin())
			if got := rendered(v.Parties()); got != "" {
				t.Fatalf("before the first round: %s", got)
			}
			if refused := w.round(v); len(refused) > 0 {
				t.Fatal(refused)
			}
			if got := rendered(v.Parties()); got != all {
				t.Fatalf("%s, want %s", got, all)
			}
			tt.change(w)
			if refused := w.round(v); len(refused) > 0 {
				t.Fatal(refused)
			}
			fresh := NewVerifier(w.pin())
			w.round(fresh)
			got, anew := rendered(v.Parties()), rendered(fresh.Parties())
			if got != anew {
				t.Errorf("%s; told at once %s", got, anew)
			}
			if tt.name != "another instance" && got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// What a host can try. None of it gives the guest another peer than the swarm
// does; what is refused says why.
func TestHostsThatLie(t *testing.T) {
	other := crdt.Device{Key: pub("spy"), Name: "spy", MeshKey: meshKey("spy")}
	for _, tt := range []struct {
		name  string
		tells func(w *world) [][]byte
		why   error
		want  string // "" means that it is as it was
	}{
		{"no statement at all", func(*world) [][]byte { return [][]byte{{}, {0x82}, []byte("a peer, please")} }, stmt.ErrEncoding, ""},
		{"one that is too large", func(*world) [][]byte { return [][]byte{make([]byte, stmt.MaxStatement+1)} }, stmt.ErrTooLarge, ""},
		{"a peer, in the owner's name", func(w *world) [][]byte {
			return [][]byte{forged(w.t, last(w.author("olga").SetDevice(other)), "")}
		}, stmt.ErrSignature, ""},
		{"a peer, in its own name", func(w *world) [][]byte {
			return [][]byte{forged(w.t, last(w.author("olga").SetDevice(other)), "one")}
		}, ErrUnwanted, ""},
		{"a peer of another owner", func(w *world) [][]byte { return [][]byte{last(w.author("otto").SetDevice(other))} }, ErrUnwanted, ""},
		{"a peer, as a device says", func(w *world) [][]byte {
			return [][]byte{forged(w.t, last(w.author("olga").SetDevice(other)), "laptop")}
		}, ErrUnwanted, ""},
		{"a device's key, in the owner's name", func(w *world) [][]byte {
			d := crdt.Device{Key: pub("laptop"), Name: "laptop", MeshKey: meshKey("spy")}
			return [][]byte{forged(w.t, last(w.author("olga").SetDevice(d)), "")}
		}, stmt.ErrSignature, ""},
		{"another node's claim, in its name", func(w *world) [][]byte {
			return [][]byte{forged(w.t, w.says("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("spy"))}), "")}
		}, stmt.ErrSignature, ""},
		{"a slot that the owner does not want", func(w *world) [][]byte {
			return [][]byte{w.says("three", crdt.Claim{Slot: 5, MeshKey: text(meshKey("spy"))})}
		}, nil, ""},
		{"another slot for itself", func(w *world) [][]byte {
			raw := w.says("one", crdt.Claim{Slot: 1, Generation: 9, MeshKey: text(meshKey("spy"))})
			w.claim("one", crdt.Claim{Slot: 0, MeshKey: text(meshKey("guest-one"))})
			return [][]byte{raw}
		}, nil, ""},
		{"a claim by a stranger", func(w *world) [][]byte {
			w.node["stranger"] = open(w.t, crdt.ReplicaConfig{Key: keyOf("stranger")})
			return [][]byte{w.says("stranger", crdt.Claim{Slot: 1, Generation: 9, MeshKey: text(meshKey("spy"))})}
		}, crdt.ErrNotMember, ""},
		{"a stranger's admission, in the root's name", func(w *world) [][]byte {
			raw, err := stmt.SignMember(keyOf("one"), netID, stmt.MemberBody{Key: pub("stranger"), Role: stmt.RoleNode}, nil, 1, 1)
			if err != nil {
				w.t.Fatal(err)
			}
			return [][]byte{raw}
		}, stmt.ErrAuthority, ""},
		{"a spec that lets others run it, by a stranger", func(w *world) [][]byte {
			raws, err := w.author("olga").Set(w.id, func(s *crdt.Spec) { s.Replicas = 64 })
			return [][]byte{forged(w.t, last(raws, err), "one")}
		}, ErrUnwanted, ""},
		{"statements of another network", func(w *world) [][]byte {
			a, err := crdt.NewAuthor(keyOf("olga"), stmt.NewNetworkID("other", pub("root")), nil)
			if err != nil {
				w.t.Fatal(err)
			}
			return [][]byte{last(a.SetDevice(other))}
		}, stmt.ErrNetwork, ""},
		{"an older claim", func(w *world) [][]byte {
			old := w.host.ClaimStatements(w.id)
			w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("again"))})
			return old
		}, crdt.ErrStale, "laptop=laptop app/1=again"},
		{"a device that was removed", func(w *world) [][]byte {
			old := w.host.OwnerStatements(pub("olga"))
			w.all(w.olga.RemoveDevice(pub("laptop")))
			return old
		}, crdt.ErrStale, "app/1=guest-two"},
		{"a node that was taken out", func(w *world) [][]byte {
			old := w.host.MeshStatements(pub("olga"))
			return append([][]byte{w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Revoked: true})}, old...)
		}, crdt.ErrStale, "laptop=laptop"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			v := NewVerifier(w.pin())
			w.round(v)
			lie := tt.tells(w)
			w.round(v) // what is new
			refused := w.round(v, lie...)
			if tt.why != nil && !slices.ContainsFunc(refused, func(err error) bool { return errors.Is(err, tt.why) }) {
				t.Errorf("refused for %v, want %v", refused, tt.why)
			}
			want := tt.want
			if want == "" {
				want = all
			}
			if got := rendered(v.Parties()); got != want {
				t.Errorf("peers %s, want %s", got, want)
			}
		})
	}
}

func last(raws [][]byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return raws[len(raws)-1]
}

// A host that tells less takes peers away, and can do no more.
func TestHostsThatKeepBack(t *testing.T) {
	w := newWorld(t)
	v := NewVerifier(w.pin())
	w.round(v)
	v.End(false)
	if got := rendered(v.Parties()); got != "" {
		t.Errorf("after a round of nothing: %s", got)
	}
	w.round(v)
	if got := rendered(v.Parties()); got != all {
		t.Errorf("%s, want %s", got, all)
	}
}

// A host that tells millions fills a bounded memory, and what is held stays.
func TestWhatIsHeldIsBounded(t *testing.T) {
	w := newWorld(t)
	v := NewVerifier(w.pin())
	w.round(v)
	v.most = 64 << 10
	seed := keyOf("invite").Seed()
	invite, err := stmt.NewInvite(keyOf("root"), netID, seed, stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode}, Expires: stmt.MaxTime})
	if err != nil {
		t.Fatal(err)
	}
	full := false
	for i := 0; i < 1000 && !full; i++ { // each is a node that the host's own ticket admits
		m := stmt.MemberBody{Key: stmt.Key{1, byte(i), byte(i >> 8), 1}, Role: stmt.RoleNode}
		raw, err := stmt.SignMember(keyOf("invite"), netID, m, invite, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		switch err := v.Tell(raw); {
		case errors.Is(err, ErrFull):
			full = true
		case err != nil:
			t.Fatal(err)
		}
	}
	held := 0
	for _, raw := range v.state.Held() {
		held += len(raw)
	}
	if !full || held > v.most {
		t.Fatalf("full %v, %d bytes", full, held)
	}
	if refused := w.round(v); len(refused) > 0 {
		t.Errorf("what is held already: %v", refused)
	}
	if got := rendered(v.Parties()); got != all {
		t.Errorf("%s, want %s", got, all)
	}
}

func TestWhatWaitsIsBounded(t *testing.T) {
	w := newWorld(t)
	v := NewVerifier(w.pin())
	w.round(v)
	w.node["stranger"] = open(t, crdt.ReplicaConfig{Key: keyOf("stranger")})
	for i := range 3 * maxPending {
		if err := v.Tell(w.says("stranger", crdt.Claim{Slot: i % 64, Generation: uint64(i + 1)})); !errors.Is(err, crdt.ErrNotMember) {
			t.Fatal(err)
		}
		if n := v.state.Pending(); n > maxPending {
			t.Fatalf("%d statements wait", n)
		}
	}
	w.round(v)
	if got := rendered(v.Parties()); got != all {
		t.Errorf("%s, want %s", got, all)
	}
}
