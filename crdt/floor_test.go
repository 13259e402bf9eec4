package crdt

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Claims below the floor of their node's register are void, whichever comes
// first, and the claims of others are not.
func TestFloor(t *testing.T) {
	w := newWorld(t)
	w.admit("n1", stmt.RoleNode)
	w.admit("n2", stmt.RoleNode)
	claim := func(node string, epoch, seq uint64, inst byte, gone bool) []byte {
		return w.claim(node, epoch, seq, Claim{Instance: DocID{inst}.String(), Owner: pub("olga"), Phase: ClaimRunning}, gone)
	}
	old, grave, again, later, other := claim("n1", 2, 3, 1, false), claim("n1", 2, 4, 2, true), claim("n1", 2, 5, 3, false), claim("n1", 3, 1, 4, false), claim("n2", 1, 1, 1, false)
	low, high := w.floored("n1", 2, 2, Node{Version: "low"}, mark{Epoch: 2, Seq: 1}), w.floored("n1", 2, 6, Node{Version: "high"}, mark{Epoch: 2, Seq: 5})
	all := [][]byte{old, grave, again, later, other, low, high}
	for first := range all {
		s := w.state()
		applyAll(s, w.raws[:2])
		for i := range all {
			_, _ = s.Apply(all[(first+i)%len(all)], time.Time{}) // what is void already is stale
		}
		if got := s.View().ClaimsBy(pub("n1")); len(got) != 2 || got[0].Seq+got[1].Seq != 6 || len(s.View().ClaimsBy(pub("n2"))) != 1 || heldClaims(s) != 3 {
			t.Errorf("from %d on: %+v count, %d claims are held", first, got, heldClaims(s))
		}
		for _, raw := range [][]byte{old, grave} {
			if _, err := s.Apply(raw, time.Time{}); !errors.Is(err, ErrStale) {
				t.Errorf("from %d on: a void claim: %v", first, err)
			}
		}
	}
}

// tidied is a node with two claims and so many tombstones that a floor is due,
// and what its two claims look like.
func tidied(t *testing.T, w *world, fsys fileSystem) (r *Replica, live []Claim) {
	t.Helper()
	ctx := context.Background()
	r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }}, fsys)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Submit(ctx, w.raws...); err != nil {
		t.Fatal(err)
	}
	var claims []Claim
	for i := range maxTombstones + 3 {
		claims = append(claims, Claim{Instance: DocID{byte(i), byte(i >> 8)}.String(), Owner: pub("olga"), Phase: ClaimRunning})
	}
	if err := errors.Join(r.SetNode(ctx, Node{Version: "1"}), r.SetClaims(ctx, claims), r.SetClaims(ctx, claims[:2])); err != nil {
		t.Fatal(err)
	}
	return r, claims[:2]
}

// A node's tombstones do not count for ever: it says its claims anew and raises
// the floor over the rest. What it claims does not change by that at any moment.
func TestTombstonesStayFew(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	w.admit("n1", stmt.RoleNode)
	disk := newMemFS(1)
	r, live := tidied(t, w, disk)
	peer := w.state()
	follow := func() {
		t.Helper()
		applyAll(peer, r.state.index().statements())
		for _, v := range []*View{r.View(), peer.View()} {
			got := v.ClaimsBy(pub("n1"))
			if len(got) != 2 || got[0].Instance != live[0].Instance && got[1].Instance != live[0].Instance {
				t.Fatalf("claims %+v", got)
			}
		}
	}
	follow()
	if n := r.own.tombstones(r.state, r.key); n != maxTombstones+1 || heldClaims(peer) != n+2 {
		t.Fatalf("%d tombstones, the peer holds %d claims", n, heldClaims(peer))
	}
	past := r.state.index().statements()
	for range 2 {
		if err := r.tidyOwn(ctx); err != nil {
			t.Fatal(err)
		}
		follow()
	}
	if heldClaims(r.state) != 2 || heldClaims(peer) != 2 {
		t.Fatalf("%d claims are held, %d by the peer", heldClaims(r.state), heldClaims(peer))
	}
	applyAll(peer, past)
	if heldClaims(peer) != 2 {
		t.Fatal("the past comes back")
	}
	size := r.log.bytes()
	if err := errors.Join(r.tidyOwn(ctx), r.tidyOwn(ctx), r.SetNode(ctx, Node{Version: "1"}), r.SetClaims(ctx, live)); err != nil || r.log.bytes() != size {
		t.Fatalf("tidying what is tidy writes %d bytes (%v)", r.log.bytes()-size, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	// The next run voids what was said before it, once.
	r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }}, disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.SetNode(ctx, Node{Version: "2"}), r.SetClaims(ctx, live), r.tidyOwn(ctx), r.tidyOwn(ctx)); err != nil {
		t.Fatal(err)
	}
	follow()
	if n := r.state.nodes.get(r.key); n.floor.Epoch != 2 {
		t.Fatalf("the floor of the second run is %+v", n.floor)
	}
}

// Whatever fails while the floor is raised, the claims are there after the next
// boot, and the next try succeeds.
func TestFaultWhileTheFloorRises(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	w.admit("n1", stmt.RoleNode)
	raise := func(r *Replica) error { return errors.Join(r.tidyOwn(ctx), r.tidyOwn(ctx)) }
	clean := newMemFS(0)
	r, _ := tidied(t, w, clean)
	before := clean.ops
	if err := raise(r); err != nil {
		t.Fatal(err)
	}
	faults := clean.ops - before
	if faults < 4 {
		t.Fatalf("raising the floor takes %d operations", faults)
	}
	for at := 1; at <= faults; at++ {
		for kind := range faultCount {
			what := fmt.Sprintf("operation %d, fault %d", at, kind)
			disk := newMemFS(uint64(at)*100 + uint64(kind))
			r, live := tidied(t, w, disk)
			disk.failAt, disk.fault = disk.ops+at, kind
			_ = raise(r) // it may fail; what matters is what is there
			r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, disk.reboot())
			if err != nil {
				t.Fatalf("%s: reopen: %v", what, err)
			}
			if got := r.View().ClaimsBy(pub("n1")); len(got) != 2 {
				t.Fatalf("%s: claims %+v", what, got)
			}
			if err := errors.Join(r.SetNode(ctx, Node{Version: "1"}), r.SetClaims(ctx, live), raise(r)); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if n := r.state.nodes.get(r.key); heldClaims(r.state) != 2 || n.floor.Epoch != 2 {
				t.Fatalf("%s: %d claims are held above %+v", what, heldClaims(r.state), n.floor)
			}
		}
	}
}

func heldClaims(s *State) (n int) {
	for range s.heldClaims() {
		n++
	}
	return n
}
