package crdt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

const testPack = "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"

// signedRoot is what an owner's tool without bounds would sign.
func (w *world) signedRoot(name string, vals map[string]any) (DocID, []byte) {
	var ops []Op
	for k, v := range vals {
		b, err := stmt.Marshal(v)
		if err != nil {
			w.t.Fatalf("value: %v", err)
		}
		ops = append(ops, Op{k, b})
	}
	sortOps(ops)
	body, err := (&specBody{Ops: ops}).encode()
	return InstanceID(pub(name), stmt.Key{}, 0), w.register(name, stmt.KindSpec, 1, 1, body, err)
}

// A value out of bounds reads as absent and is kept; the rest of its document
// counts. No Author signs one.
func TestValuesOutOfBounds(t *testing.T) {
	long := strings.Repeat("x", MaxWord+1)
	var tooMany []stmt.Key
	for i := range byte(MaxVoters + 2) {
		tooMany = append(tooMany, stmt.Key{i + 1})
	}
	for _, tt := range []struct {
		key  string
		bad  []any
		good any
		zero func(*Spec) bool
		sign func(*Spec)
	}{
		{keyName, []any{"", "Web", "-a", long}, "a", func(s *Spec) bool { return s.Name == "" }, func(s *Spec) { s.Name = long }},
		{keyPack, []any{"bafyreib", long, strings.ToUpper(testPack), testPack + "a", 7}, testPack, func(s *Spec) bool { return s.Pack == "" }, func(s *Spec) { s.Pack = long }},
		{keyReplicas, []any{-1, MaxReplicas + 1, uint64(1) << 63}, MaxReplicas, func(s *Spec) bool { return s.Replicas == 0 }, func(s *Spec) { s.Replicas = MaxReplicas + 1 }},
		{keyVCPU, []any{-1, MaxVCPU + 1, uint64(1) << 63}, MaxVCPU, func(s *Spec) bool { return s.VCPU == 0 }, func(s *Spec) { s.VCPU = MaxVCPU + 1 }},
		{keyMemory, []any{-1, uint64(MaxMemory) + 1, ^uint64(0)}, uint64(MaxMemory), func(s *Spec) bool { return s.MemoryBytes == 0 }, func(s *Spec) { s.MemoryBytes = MaxMemory + 1 }},
		{keyDisk, []any{-1, uint64(MaxDisk) + 1, ^uint64(0)}, uint64(MaxDisk), func(s *Spec) bool { return s.DiskBytes == 0 }, func(s *Spec) { s.DiskBytes = MaxDisk + 1 }},
		{keyRestart, []any{^uint64(0)}, 5, func(s *Spec) bool { return s.Restart == 0 }, func(s *Spec) { s.Restart = ^uint64(0) }},
		{keyGeneration, []any{^uint64(0)}, 5, func(s *Spec) bool { return s.Generation == 0 }, nil},
		{keyRegion, []any{long}, "eu", func(s *Spec) bool { return s.Region == "" }, func(s *Spec) { s.Region = long }},
		{prefixLabel + "a", []any{long, 1}, "b", func(s *Spec) bool { return len(s.Labels) == 0 }, func(s *Spec) { s.Labels = map[string]string{"a": long} }},
		{keyVoters, []any{[]stmt.Key{}, []stmt.Key{{1}, {2}}, []stmt.Key{{1}, {2}, {1}}, []stmt.Key{{}}, tooMany, "n1", []any{[]byte("short")}}, tooMany[:MaxVoters],
			func(s *Spec) bool { return len(s.Voters) == 0 }, func(s *Spec) { s.Voters = tooMany }},
		{keyTerm, []any{-1, ^uint64(0)}, 5, func(s *Spec) bool { return s.Term == 0 }, nil},
		{keySSH, []any{[]any{"key", 1}}, []string{"key"}, func(s *Spec) bool { return len(s.SSHKeys) == 0 }, nil},
	} {
		read := func(v any) *Spec {
			w := newWorld(t)
			w.admit("olga", stmt.RoleOwner)
			id, raw := w.signedRoot("olga", map[string]any{tt.key: v, "env/A": "1"})
			body, err := stmt.Marshal(ownerBody{Live: []DocID{id}})
			w.register("olga", stmt.KindOwner, 0, 0, body, err)
			s := w.state()
			applyAll(s, w.raws)
			if !s.ids.has(mustID(t, raw, w)) {
				t.Fatalf("%s = %v: the statement is refused", tt.key, v)
			}
			spec, ok := s.View().Instance(id.String())
			if !ok || spec.Env["A"] != "1" {
				t.Fatalf("%s = %v hides the instance", tt.key, v)
			}
			return &spec
		}
		for _, v := range tt.bad {
			if s := read(v); !tt.zero(s) || len(s.Unknown[tt.key]) == 0 {
				t.Errorf("%s = %v counts: %+v", tt.key, v, s)
			}
		}
		if s := read(tt.good); tt.zero(s) || len(s.Unknown) != 0 {
			t.Errorf("%s = %v does not count: %+v", tt.key, tt.good, s)
		}
		if tt.sign == nil {
			continue
		}
		spec := Spec{Name: "a"}
		tt.sign(&spec)
		if _, _, err := newWorld(t).author("olga", nil).Create(spec); err == nil {
			t.Errorf("an Author signs %s out of bounds", tt.key)
		}
	}
}

func mustID(t *testing.T, raw []byte, w *world) stmt.ID {
	t.Helper()
	st, err := stmt.Peek(raw, w.net)
	if err != nil {
		t.Fatal(err)
	}
	return st.ID
}

// Claims are made to fit; one that cannot be published is left out and does not
// keep the others from being heard.
func TestOneBadClaim(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	r, err := Open(ReplicaConfig{Dir: t.TempDir(), Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Submit(ctx, w.admit("n1", stmt.RoleNode)); err != nil {
		t.Fatal(err)
	}
	huge, wide := strings.Repeat("x", 4000), strings.Repeat("y", maxClaimText)
	inst := func(n byte) string { return DocID{n}.String() }
	err = r.SetClaims(ctx, []Claim{
		{Instance: inst(1), Owner: pub("olga"), Phase: ClaimRunning, Pack: testPack, Reason: huge, SSHHostKey: huge, Endpoint: "bad\xff"},
		{Instance: inst(2), Owner: pub("olga"), Reason: wide, SSHHostKey: wide, MeshKey: wide, Endpoint: wide},
		{Instance: inst(3), Owner: pub("olga"), Address: wide, Address6: wide, SSHHostKey: wide, MeshKey: wide, Endpoint: wide},
		{Instance: inst(4), Owner: pub("olga"), Slot: MaxReplicas},
		{Instance: "nonsense", Owner: pub("olga")},
		{Instance: inst(5), Owner: pub("olga"), Phase: ClaimFetching},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := r.View().ClaimsBy(pub("n1"))
	if len(got) != 3 {
		t.Fatalf("%d claims are published, want 3: %+v", len(got), got)
	}
	for _, c := range got {
		switch c.Instance {
		case inst(1):
			if c.Pack != testPack || len(c.Reason) != maxReason || c.SSHHostKey != "" || c.Endpoint != "" {
				t.Errorf("cut to %+v", c)
			}
		case inst(2):
			if c.SSHHostKey != wide || c.MeshKey != wide || c.Reason == "" {
				t.Errorf("the reason is not what gives way: %+v", c)
			}
		}
	}
}

// A node with more addresses and packs than fit is heard all the same.
func TestLargeNodeRegister(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	r, err := Open(ReplicaConfig{Dir: t.TempDir(), Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Submit(ctx, w.admit("n1", stmt.RoleNode)); err != nil {
		t.Fatal(err)
	}
	n := Node{Version: "1", Labels: map[string]string{"formd.accept": strings.Repeat("k", 1800)}}
	for i := range 200 {
		n.Addrs = append(n.Addrs, fmt.Sprintf("/ip6/2001:db8:1111:2222:3333:4444:5555:%04x/udp/51820/quic-v1/p2p/%s", i, pub("n1")))
		n.Holds = append(n.Holds, testPack)
		if i < 32 {
			n.Labels[fmt.Sprintf("l%02d%s", i, strings.Repeat("k", 30))] = strings.Repeat("v", 60)
		}
	}
	if err := r.SetNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	got, _ := r.View().Node(pub("n1"))
	if !slices.Equal(got.Addrs, n.Addrs[:len(got.Addrs)]) || len(got.Addrs) == 0 || len(got.Addrs) > MaxAddrs || len(got.Labels) != 33 {
		t.Errorf("%d addresses, %d labels", len(got.Addrs), len(got.Labels))
	}
	n.Addrs, n.Labels = n.Addrs[:3], nil
	if err := r.SetNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	if got, _ = r.View().Node(pub("n1")); len(got.Holds) != MaxHolds || len(got.Addrs) != 3 {
		t.Errorf("%d holds, %d addresses published", len(got.Holds), len(got.Addrs))
	}
	n.Labels = map[string]string{"a": strings.Repeat("x", 9000), "b": "kept"}
	if err := r.SetNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	if got, _ = r.View().Node(pub("n1")); got.Labels["b"] != "kept" || len(got.Labels) != 1 {
		t.Errorf("labels %v", got.Labels)
	}
}

// A contract that counts voters is not signed without them, and every change of
// the voters of an instance is a new term, whatever the caller says of it.
func TestTermCountsChangesOfVoters(t *testing.T) {
	a := newWorld(t).author("olga", nil)
	one, two := []stmt.Key{{1}}, []stmt.Key{{1}, {2}, {3}}
	for _, p := range []string{PartitionStopMinority, PartitionFence} {
		if _, _, err := a.Create(Spec{Name: "a", Partition: p}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s without voters: %v", p, err)
		}
	}
	id, _, err := a.Create(Spec{Name: "a", Partition: PartitionFence, Voters: one})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		change func(*Spec)
		want   uint64
	}{
		{func(s *Spec) { s.Replicas = 1 }, 0},
		{func(s *Spec) { s.Voters = two }, 1},
		{func(s *Spec) { s.Voters, s.Term, s.Replicas = slices.Clone(two), 7, 2 }, 1},
		{func(s *Spec) { s.Voters, s.Term = one, 0 }, 2},
		{func(s *Spec) { s.Voters, s.Partition = nil, PartitionKeep }, 3},
		{func(s *Spec) { s.Voters, s.Partition = two, PartitionFence }, 4},
	} {
		if _, err := a.Set(id, step.change); err != nil {
			t.Fatal(err)
		}
		if s, _ := a.state.View().Instance(id); s.Term != step.want {
			t.Errorf("term %d, want %d", s.Term, step.want)
		}
	}
}
