package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
)

// world is a State made by hand.
type world struct {
	nodes   []crdt.Node
	claims  []crdt.Claim
	devices []crdt.Device
	rank    map[stmt.Key]uint64
}

func (w *world) Nodes() []crdt.Node             { return w.nodes }
func (w *world) Devices(stmt.Key) []crdt.Device { return w.devices }
func (w *world) Root() stmt.Key                 { return stmt.Key{9} }
func (w *world) Rank(k stmt.Key) uint64         { return w.rank[k] }
func (w *world) Claims(string) []crdt.Claim     { return w.claims }
func (w *world) Instances() []crdt.Spec {
	return []crdt.Spec{{ID: "app", Owner: stmt.Key{8}, Replicas: 64}}
}
func (w *world) MayRun(*crdt.Spec, stmt.Key) bool { return true }

func key(n int) stmt.Key { return stmt.Key{'n', byte(n)} }

func newSpace(t interface{ Fatal(...any) }) wg.Space {
	s, err := wg.NewSpace([32]byte{1}, netip.MustParsePrefix("10.128.0.0/22"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPeersOfANode(t *testing.T) {
	space := newSpace(t)
	first := func(n int) netip.Addr { return space.Candidate4(policy.Party{Node: key(n)}.Identity(), 0) }
	operator := stmt.Key{7}
	w := &world{rank: map[stmt.Key]uint64{}, devices: []crdt.Device{{Key: stmt.Key{'d'}, Name: "laptop", MeshKey: stmt.Key{'m', 0}}}}
	for n := range 3 {
		w.nodes = append(w.nodes, crdt.Node{Key: key(n), MeshKey: stmt.Key{'m', 1, byte(n)}, Address4: first(n), Operator: operator, Named: []stmt.Key{operator}})
	}
	w.nodes[2].Address4 = netip.MustParseAddr("10.128.1.1") // by no right
	if w.nodes[2].Address4 == first(2) {
		t.Fatal("choose another address")
	}
	got := NewBook(w, space).Peers(policy.OfNode(w, key(0)))
	if len(got) != 3 || got[0].Name != "laptop" || got[0].Host != "" || got[1].Address4 != first(1) || got[2].Address4.IsValid() {
		t.Fatalf("peers %+v", got)
	}
	if hosts := Hosts(append(got, got...)); !slices.Equal(hosts, []peer.ID{peer.ID(key(1).PeerID()), peer.ID(key(2).PeerID())}) {
		t.Errorf("hosts %v", hosts)
	}
	want := Wanted(got)
	if want[0].Endpoint.IsValid() || want[1].Endpoint != carrier.Address(got[1].Host) || want[1].Keepalive != 0 ||
		!slices.Equal(want[1].Addresses, []netip.Addr{space.Address6(got[1].Identity()), first(1)}) || len(want[2].Addresses) != 1 {
		t.Errorf("as the device takes them: %+v", want)
	}
	// A replica that has more right to it takes the address from a node.
	replica := crdt.Claim{Node: key(2), Instance: "app", Owner: stmt.Key{8}, MeshKey: wg.Key{5}.String()}
	for slot := 0; ; slot++ {
		replica.Slot = slot % 64
		replica.Node = key(2 + slot/64)
		p := policy.Party{Instance: "app", Slot: replica.Slot, Node: replica.Node}
		if space.MayClaim(first(1), p.Identity()) {
			break
		}
	}
	replica.Address = first(1).String()
	w.claims = []crdt.Claim{replica}
	w.rank[key(1)] = 1
	if got := NewBook(w, space).Peers(policy.OfNode(w, key(0)))[1].Address4; got.IsValid() {
		t.Errorf("node 1 keeps %s", got)
	}
	if got := NewBook(w, space).Claim4(key(1), first(1)); got == first(1) || !got.IsValid() {
		t.Errorf("node 1 claims %s", got)
	}
	w.claims[0].Owner = stmt.Key{1} // in another's name
	if got := NewBook(w, space).Claim4(key(1), first(1)); got != first(1) {
		t.Errorf("node 1 moves to %s", got)
	}
}

// Nodes that claim one after the other, in any order and however often, end with
// an address each, and nobody moves any more.
func TestClaimsSettle(t *testing.T) {
	space := newSpace(t)
	rapid.Check(t, func(t *rapid.T) {
		w := &world{rank: map[stmt.Key]uint64{}}
		n := rapid.IntRange(1, 40).Draw(t, "nodes")
		for i := range n {
			w.nodes = append(w.nodes, crdt.Node{Key: key(i), MeshKey: stmt.Key{'m', byte(i)}})
			w.rank[key(i)] = uint64(rapid.IntRange(0, 3).Draw(t, "rank"))
		}
		for range 8 {
			for _, i := range rapid.Permutation(slices.Collect(func(yield func(int) bool) {
				for i := range n {
					if !yield(i) {
						return
					}
				}
			})).Draw(t, "order") {
				w.nodes[i].Address4 = NewBook(w, space).Claim4(key(i), w.nodes[i].Address4)
			}
		}
		seen := map[netip.Addr]string{}
		for i, v := range w.nodes {
			if !v.Address4.IsValid() || seen[v.Address4] != "" {
				t.Fatalf("node %d has %s, as node %s", i, v.Address4, seen[v.Address4])
			}
			seen[v.Address4] = fmt.Sprint(i)
			if again := NewBook(w, space).Claim4(v.Key, v.Address4); again != v.Address4 {
				t.Fatalf("node %d moves from %s to %s", i, v.Address4, again)
			}
		}
	})
}
