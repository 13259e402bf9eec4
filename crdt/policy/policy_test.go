package policy

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// world is a State made by hand.
type world struct {
	specs   []crdt.Spec
	claims  []crdt.Claim
	devices map[stmt.Key][]crdt.Device
	barred  map[stmt.Key]bool // nodes
}

func (w *world) InstancesOf(owner stmt.Key) []crdt.Spec {
	return slices.DeleteFunc(slices.Clone(w.specs), func(s crdt.Spec) bool { return s.Owner != owner })
}

func (w *world) Claims(id string) []crdt.Claim {
	return slices.DeleteFunc(slices.Clone(w.claims), func(c crdt.Claim) bool { return c.Instance != id })
}
func (w *world) Devices(owner stmt.Key) []crdt.Device    { return w.devices[owner] }
func (w *world) MayRun(_ *crdt.Spec, node stmt.Key) bool { return !w.barred[node] }
func id(kind byte, n int) stmt.Key                       { return stmt.Key{kind, byte(n)} }
func mesh(kind byte, n int) stmt.Key                     { return stmt.Key{kind, byte(n), 1} }
func text(k stmt.Key) string                             { return base64.StdEncoding.EncodeToString(k[:]) }
func device(owner, n int) crdt.Device {
	return crdt.Device{Key: id('d', n), Name: fmt.Sprint("laptop", n), MeshKey: mesh('d', n)}
}

// claim is one by node n of a slot, whose guest has a key of its own.
func claim(instance string, owner stmt.Key, slot, n, generation int) crdt.Claim {
	return crdt.Claim{Node: id('n', n), Instance: instance, Owner: owner, Slot: slot, Generation: uint64(generation), Ready: true,
		MeshKey: text(stmt.Key{'g', instance[0], byte(slot), byte(n)}), Address: fmt.Sprintf("10.128.1.%d", n)}
}

// two is two owners: one has a laptop, an instance of two replicas and another
// of one; the other a laptop and one replica on the same node.
func two() *world {
	a, b := id('o', 1), id('o', 2)
	return &world{
		specs:   []crdt.Spec{{ID: "app", Owner: a, Name: "app", Replicas: 2}, {ID: "db", Owner: a, Name: "db", Replicas: 1}, {ID: "web", Owner: b, Name: "web", Replicas: 1}},
		claims:  []crdt.Claim{claim("app", a, 0, 1, 1), claim("app", a, 1, 2, 1), claim("db", a, 0, 1, 1), claim("web", b, 0, 1, 1)},
		devices: map[stmt.Key][]crdt.Device{a: {device(1, 1)}, b: {device(2, 2)}},
		barred:  map[stmt.Key]bool{},
	}
}

func names(ps []Party) string {
	var out []string
	for _, p := range ps {
		n := p.Name
		if p.Device.IsZero() {
			n = fmt.Sprintf("%s/%d@%d", p.Name, p.Slot, p.Node[1])
		}
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

func TestWhoTalksWithWhom(t *testing.T) {
	a, b := id('o', 1), id('o', 2)
	for _, tt := range []struct {
		name            string
		change          func(w *world)
		device, app, db string // peers of a's laptop, of app/0 on node 1, of db/0 on node 1
	}{
		{"as it is", func(*world) {}, "app/0@1 app/1@2 db/0@1", "laptop1 app/1@2 db/0@1", "laptop1 app/0@1 app/1@2"},
		{"the laptop is removed", func(w *world) { delete(w.devices, a) }, "", "app/1@2 db/0@1", "app/0@1 app/1@2"},
		{"the laptop has no key", func(w *world) { w.devices[a][0].MeshKey = stmt.Key{} }, "", "app/1@2 db/0@1", "app/0@1 app/1@2"},
		{"node 2 may not run it", func(w *world) { w.barred[id('n', 2)] = true }, "app/0@1 db/0@1", "laptop1 db/0@1", "laptop1 app/0@1"},
		{"scaled down", func(w *world) { w.specs[0].Replicas = 1 }, "app/0@1 db/0@1", "laptop1 db/0@1", "laptop1 app/0@1"},
		{"deleted", func(w *world) { w.specs = w.specs[1:] }, "db/0@1", "", "laptop1"},
		{"the guest is not up", func(w *world) { w.claims[1].MeshKey = "" }, "app/0@1 db/0@1", "laptop1 db/0@1", "laptop1 app/0@1"},
		{"no key at all", func(w *world) { w.claims[1].MeshKey = "AAAA" }, "app/0@1 db/0@1", "laptop1 db/0@1", "laptop1 app/0@1"},
		{"the zero key", func(w *world) { w.claims[1].MeshKey = text(stmt.Key{}) }, "app/0@1 db/0@1", "laptop1 db/0@1", "laptop1 app/0@1"},
		{"a claim in another's name", func(w *world) { w.claims[1].Owner = b }, "app/0@1 db/0@1", "laptop1 db/0@1", "laptop1 app/0@1"},
		{"another's key", func(w *world) { w.claims[2].MeshKey = w.claims[0].MeshKey }, "app/0@1 app/1@2", "laptop1 app/1@2", ""},
		{"the laptop's key", func(w *world) { w.claims[1].MeshKey = text(mesh('d', 1)) }, "app/0@1 db/0@1", "laptop1 db/0@1", "laptop1 app/0@1"},
		{"a node claims two slots", func(w *world) { w.claims = append(w.claims, claim("app", a, 1, 1, 9)) }, "app/0@1 app/1@2 db/0@1", "laptop1 app/1@2 db/0@1", "laptop1 app/0@1 app/1@2"},
		{"a replica moves", func(w *world) { w.claims = append(w.claims, claim("app", a, 1, 3, 2), claim("app", a, 1, 4, 0)) },
			"app/0@1 app/1@3 app/1@2 db/0@1", "laptop1 app/1@3 app/1@2 db/0@1", "laptop1 app/0@1 app/1@3 app/1@2"},
	} {
		w := two()
		tt.change(w)
		for _, x := range []struct{ what, got, want string }{
			{"the laptop", names(OfDevice(w, a, id('d', 1))), tt.device},
			{"app/0", names(OfReplica(w, a, "app", 0, id('n', 1))), tt.app},
			{"db/0", names(OfReplica(w, a, "db", 0, id('n', 1))), tt.db},
			{"b's laptop", names(OfDevice(w, b, id('d', 2))), "web/0@1"},
			{"b's laptop in a's name", names(OfDevice(w, a, id('d', 2))), ""},
			{"nobody", names(OfDevice(w, a, stmt.Key{})), ""},
			{"a replica that is not", names(OfReplica(w, a, "app", 0, id('n', 9))), ""},
			{"another's instance", names(OfReplica(w, b, "app", 0, id('n', 1))), ""},
		} {
			if x.got != x.want {
				t.Errorf("%s: %s talks with %q, want %q", tt.name, x.what, x.got, x.want)
			}
		}
	}
}

// Whoever is somebody's peer has that as a peer; no party reaches another owner's.
func TestPeersAreMutual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{devices: map[stmt.Key][]crdt.Device{}, barred: map[stmt.Key]bool{id('n', 3): true}}
		for o := range 3 {
			owner := id('o', o)
			for d := range rapid.IntRange(0, 2).Draw(t, "devices") {
				w.devices[owner] = append(w.devices[owner], device(o, 10*o+d))
			}
			for i := range rapid.IntRange(0, 2).Draw(t, "instances") {
				name := string(rune('a'+3*o+i)) + "pp"
				w.specs = append(w.specs, crdt.Spec{ID: name, Name: name, Owner: owner, Replicas: rapid.IntRange(0, 2).Draw(t, "replicas")})
				for range rapid.IntRange(0, 4).Draw(t, "claims") {
					c := claim(name, id('o', rapid.SampledFrom([]int{o, o, o, 2}).Draw(t, "owner")), rapid.IntRange(0, 2).Draw(t, "slot"),
						rapid.IntRange(0, 4).Draw(t, "node"), rapid.IntRange(0, 2).Draw(t, "generation"))
					if rapid.IntRange(0, 5).Draw(t, "copies") == 0 {
						c.MeshKey = text(stmt.Key{'g', 'a', 0, 1})
					}
					if !slices.ContainsFunc(w.claims, func(o crdt.Claim) bool { return o.Instance == c.Instance && o.Slot == c.Slot && o.Node == c.Node }) {
						w.claims = append(w.claims, c)
					}
				}
			}
		}
		peers := map[Key][]Party{}
		owner := map[Key]stmt.Key{}
		for o := range 3 {
			for _, p := range parties(w, id('o', o)) {
				if !p.Device.IsZero() {
					peers[p.Key] = OfDevice(w, p.Owner, p.Device)
				} else if _, shared := owner[p.Key]; shared {
					continue // two owners' hosts claim one key: WireGuard has it once a device
				} else {
					peers[p.Key] = OfReplica(w, p.Owner, p.Instance, p.Slot, p.Node)
				}
				owner[p.Key] = p.Owner
			}
		}
		for key, ps := range peers {
			for _, p := range ps {
				if p.Owner != owner[key] {
					t.Fatalf("a party of %s reaches %s", owner[key], p.Owner)
				}
				if p.Key == key {
					t.Fatal("a party is its own peer")
				}
				if owner[p.Key] == p.Owner && !slices.ContainsFunc(peers[p.Key], func(q Party) bool { return q.Key == key }) {
					t.Fatalf("%v is a peer, and has none", p)
				}
			}
		}
	})
}

func TestIdentitiesDiffer(t *testing.T) {
	w := two()
	seen := map[string]bool{}
	for _, o := range []int{1, 2} {
		for _, p := range parties(w, id('o', o)) {
			if seen[string(p.Identity())] {
				t.Errorf("%v has another's identity", p)
			}
			seen[string(p.Identity())] = true
			p.Key = Key{9}
			if !seen[string(p.Identity())] {
				t.Error("an identity depends on the key")
			}
		}
	}
	if got := parties(w, id('o', 1))[1].Address4; got != netip.MustParseAddr("10.128.1.1") {
		t.Errorf("address %s", got)
	}
}

func TestPeersAreBounded(t *testing.T) {
	w := two()
	a := id('o', 1)
	for i := range 300 {
		name := fmt.Sprintf("x%03d", i)
		w.specs = append(w.specs, crdt.Spec{ID: name, Name: name, Owner: a, Replicas: 4})
		for slot := range 4 {
			c := claim(name, a, slot, slot, 1)
			c.MeshKey = text(stmt.Key{'h', byte(i), byte(i >> 8), byte(slot)})
			w.claims = append(w.claims, c)
		}
	}
	got := OfReplica(w, a, "app", 0, id('n', 1))
	if len(got) != MaxPeers || got[0].Device != id('d', 1) {
		t.Errorf("%d peers, the first is %v", len(got), got[0])
	}
}
