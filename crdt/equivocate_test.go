package crdt

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// Who signs two contents for one register under one number is told of, whichever
// comes first, with a proof that lasts over a restart; everybody holds the same of
// it. What is only forged accuses nobody.
func TestEquivocatingRegisters(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	setup := [][]byte{w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode)}
	inst := DocID{1}.String()
	claim := func(reason string) []byte {
		return w.claim("n1", 2, 8, Claim{Instance: inst, Owner: pub("olga"), Phase: ClaimRunning, Reason: reason}, false)
	}
	nodes := [][]byte{w.node("n1", 2, 7, Node{Version: "a"}), w.node("n1", 2, 7, Node{Version: "b"})}
	claims := [][]byte{claim("a"), claim("b")}
	forged := w.node("n2", 1, 1, Node{Version: "b"})
	forged = append(slices.Clone(forged[:len(forged)-1]), forged[len(forged)-1]^1)
	honest := [][]byte{w.node("n2", 1, 1, Node{Version: "a"}), w.node("n2", 1, 2, Node{Version: "c"})}
	var views []string
	for _, backwards := range []bool{false, true} {
		disk := newMemFS(12)
		open := func() *Replica {
			r, err := openReplica(ReplicaConfig{Key: keyOf("n9"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }}, disk)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := open()
		if _, err := r.Submit(ctx, setup...); err != nil {
			t.Fatal(err)
		}
		twins := [][]byte{nodes[0], nodes[1], claims[0], claims[1]}
		if backwards {
			slices.Reverse(twins)
		}
		for _, raws := range [][][]byte{honest[:1], {forged}, honest[1:], twins, twins} {
			_, _ = r.merge(peer.ID("p"), raws, testNow) // the loser of two is stale, the forged one is refused
		}
		check := func(when string) {
			got := r.Equivocations()
			if len(got) != 2 || got[0].Kind != stmt.KindClaim || got[1].Kind != stmt.KindNode {
				t.Fatalf("%s: %+v", when, got)
			}
			for _, e := range got {
				a, b := mustID(t, e.Raws[0], w), mustID(t, e.Raws[1], w)
				if e.Author != pub("n1") || e.Epoch != 2 || a == b || !e.FoundAt.Equal(testNow) {
					t.Errorf("%s: %+v", when, e)
				}
			}
		}
		check("as they came")
		if n := r.Stats().Equivocations; n[stmt.KindNode] != 1 || n[stmt.KindClaim] != 1 {
			t.Errorf("counted %v", n)
		}
		views = append(views, render(r.View()))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r = open()
		check("after a restart")
		if n := r.Stats().Equivocations; len(n) != 0 {
			t.Errorf("after a restart %v are counted as new", n)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if views[0] != views[1] {
		t.Errorf("the order matters: %s", diffLines(views[0], views[1]))
	}
}

// A document that its owner's two contents freeze is told of too.
func TestEquivocatingSpecIsTold(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	id, created, err := w.author("olga", nil).Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	raws := append(slices.Clone(w.raws), created...)
	for n := range 2 { // a device restored from a backup: one actor, twice
		a, err := newAuthor(keyOf("olga"), pub("olga"), w.net, created, seeded(99))
		if err != nil {
			t.Fatal(err)
		}
		a.Now = func() time.Time { return testNow }
		more, err := a.Set(id, func(s *Spec) { s.Replicas = n + 1 })
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, more...)
	}
	r, err := openReplica(ReplicaConfig{Key: keyOf("n9"), Network: w.net, Root: w.root, Engine: NewModel()}, newMemFS(13))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Submit(context.Background(), raws...); err != nil {
		t.Fatal(err)
	}
	got := r.Equivocations()
	if len(got) != 1 || got[0].Kind != stmt.KindSpec || got[0].Author != pub("olga") || r.Stats().Equivocations[stmt.KindSpec] != 1 {
		t.Fatalf("%+v", got)
	}
}

// A peer holds one statement for each register: one that sends two in a session
// breaks the protocol.
func TestOneStatementPerRegisterAndSession(t *testing.T) {
	w := newWorld(t)
	r, err := openReplica(ReplicaConfig{Key: keyOf("n9"), Network: w.net, Root: w.root, Engine: NewModel()}, newMemFS(14))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Submit(context.Background(), w.admit("n1", stmt.RoleNode), w.admit("olga", stmt.RoleOwner)); err != nil {
		t.Fatal(err)
	}
	id, created, err := w.create("olga")
	if err != nil {
		t.Fatal(err)
	}
	claim := func(slot int, seq uint64) []byte {
		return w.claim("n1", 1, seq, Claim{Instance: id, Owner: pub("olga"), Slot: slot}, false)
	}
	secret := func(name string, n byte) []byte {
		raws, err := w.author("olga", created).SetSecret(id, someSecret(name, n))
		if err != nil {
			t.Fatal(err)
		}
		return raws[0]
	}
	for _, tt := range []struct {
		name  string
		raws  [][]byte
		fault bool
	}{
		{"node", [][]byte{w.node("n1", 1, 1, Node{}), w.node("n1", 1, 2, Node{})}, true},
		{"claim", [][]byte{claim(0, 3), claim(0, 4)}, true},
		{"base", [][]byte{w.base("n1", 1, "a"), w.base("n1", 2, "a")}, true},
		{"secret", [][]byte{secret("A", 1), secret("A", 2)}, true},
		{"registers of other names", [][]byte{claim(0, 5), claim(1, 6), w.base("n1", 3, "a"), w.base("n1", 1, "b"), w.node("n1", 1, 7, Node{}), secret("A", 3), secret("B", 3)}, false},
		{"the same again", [][]byte{claim(2, 8), claim(2, 8)}, false},
		{"what is no register", created, false},
	} {
		s := r.newSession(nil, &dialogue{peer: "p"})
		var err error
		for _, raw := range tt.raws { // also over several frames
			err = errors.Join(err, s.apply([][]byte{raw}))
		}
		if errors.Is(err, errAEProtocol) != tt.fault {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func FuzzEquivocations(f *testing.F) {
	w := newWorld(f)
	proof := Equivocation{FoundAt: testNow, Raws: [2][]byte{w.node("n1", 1, 1, Node{Version: "a"}), w.node("n1", 1, 1, Node{Version: "b"})}}
	one, err := encodeDoubled([]Equivocation{proof})
	if err != nil {
		f.Fatal(err)
	}
	if list, err := decodeDoubled(one, w.net); err != nil || len(list) != 1 || list[0].Author != pub("n1") {
		f.Fatalf("%+v, %v", list, err)
	}
	proof.Raws[1] = proof.Raws[0]
	none, err := encodeDoubled([]Equivocation{proof})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := decodeDoubled(none, w.net); err == nil {
		f.Fatal("one statement twice is taken for a proof")
	}
	f.Add([]byte{})
	f.Add(one)
	f.Add(none)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeDoubled(b, w.net)
		for _, e := range list {
			if err != nil || string(e.Raws[0]) == string(e.Raws[1]) || e.Author.IsZero() {
				t.Fatalf("a proof of nothing: %+v, %v", e, err)
			}
		}
	})
}
