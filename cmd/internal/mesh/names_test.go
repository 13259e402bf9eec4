package mesh

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/dns"
)

// swarm is a Swarm made by hand.
type swarm struct {
	specs  []crdt.Spec
	claims map[string][]crdt.Claim
	nodes  []crdt.Node
	rank   map[stmt.Key]uint64
}

func (w *swarm) Instances() []crdt.Spec           { return w.specs }
func (w *swarm) Claims(id string) []crdt.Claim    { return w.claims[id] }
func (w *swarm) MayRun(*crdt.Spec, stmt.Key) bool { return true }
func (w *swarm) Nodes() []crdt.Node               { return w.nodes }
func (w *swarm) Devices(stmt.Key) []crdt.Device   { return nil }
func (w *swarm) Root() stmt.Key                   { return stmt.Key{} }
func (w *swarm) Rank(k stmt.Key) uint64           { return w.rank[k] }
func (w *swarm) claim(id string, slot int, n byte) *crdt.Claim {
	key := stmt.Key{'g', byte(len(w.claims)), byte(slot), n}
	w.claims[id] = append(w.claims[id], crdt.Claim{Node: node(n), Instance: id, Owner: owner, Slot: slot, Generation: uint64(n), Ready: true,
		MeshKey: base64.StdEncoding.EncodeToString(key[:])})
	return &w.claims[id][len(w.claims[id])-1]
}

var owner = stmt.Key{'o'}

func node(n byte) stmt.Key { return stmt.Key{'n', n} }

func spaceOf(t testing.TB) wg.Space {
	t.Helper()
	s, err := wg.NewSpace([32]byte{1}, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func party(c *crdt.Claim) policy.Party {
	return policy.Party{Instance: c.Instance, Slot: c.Slot, Node: c.Node, Owner: c.Owner}
}

// An IPv4 address counts only for who may claim it and was admitted first; an IPv6
// address is what follows from who somebody is, whatever is claimed.
func TestAddressesInNames(t *testing.T) {
	s := spaceOf(t)
	w := &swarm{claims: map[string][]crdt.Claim{}, rank: map[stmt.Key]uint64{node(1): 2, node(2): 1}, specs: []crdt.Spec{{ID: "a", Name: "app", Owner: owner, Replicas: 2}}}
	one := w.claim("a", 0, 1)
	one.Address, one.Address6 = s.Candidate4(party(one).Identity(), 3).String(), "fd00::bad"
	two := w.claim("a", 1, 2)
	two.Address = one.Address // not one of its candidates
	w.nodes = []crdt.Node{{Key: node(1), MeshKey: stmt.Key{'m', 1}}}
	w.nodes[0].Address4 = s.Candidate4(policy.Party{Node: node(1)}.Identity(), 0)
	got, problems := NewBook(w, s).Names(nil)
	text := ""
	for _, n := range got {
		text += n.Name + ":"
		for _, t := range n.Targets {
			text += fmt.Sprintf(" %v/%v", t.Addr4, t.Addr6)
		}
		text += "\n"
	}
	a, b := fmt.Sprintf("%s/%s", w.claims["a"][0].Address, s.Address6(party(&w.claims["a"][0]).Identity())), fmt.Sprintf("invalid IP/%s", s.Address6(party(&w.claims["a"][1]).Identity()))
	l := names.Label(owner)
	want := fmt.Sprintf("app.%s: %s %s\n0.app.%[1]s: %[2]s\n1.app.%[1]s: %[3]s\n%s.node: %s/%s\n", l, a, b, names.Label(node(1)), w.nodes[0].Address4, s.Address6(policy.Party{Node: node(1)}.Identity()))
	if text != want || len(problems) != 0 {
		t.Errorf("got\n%swant\n%s%v", text, want, problems)
	}
	if at := netip.MustParseAddr(w.claims["a"][0].Address); !NewBook(w, s).Taken(at, party(&w.claims["a"][1]).Identity()) || NewBook(w, s).Taken(at, party(&w.claims["a"][0]).Identity()) {
		t.Error("taken is said of the wrong one")
	}
}

// From the moment that a node is known to be dead nobody is sent there; the
// replica that takes its place is named when it is ready.
func TestReplicaDies(t *testing.T) {
	s := spaceOf(t)
	w := &swarm{claims: map[string][]crdt.Claim{}, rank: map[stmt.Key]uint64{}, specs: []crdt.Spec{{ID: "a", Name: "app", Owner: owner, Replicas: 2}}}
	w.claim("a", 0, 1)
	w.claim("a", 1, 2)
	server, err := dns.New(dns.Config{Zone: names.Zone})
	if err != nil {
		t.Fatal(err)
	}
	dead := map[stmt.Key]bool{}
	at := func(n byte, slot int) string {
		return s.Address6(policy.Party{Instance: "a", Slot: slot, Node: node(n)}.Identity()).String()
	}
	is := func(when string, want ...string) {
		t.Helper()
		all, problems := NewBook(w, s).Names(func(n stmt.Key) bool { return !dead[n] })
		if err := server.Set(all); err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		got := ask(t, server, "app."+names.Label(owner)+"."+names.Zone+".")
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	is("both live", at(1, 0), at(2, 1))
	dead[node(2)] = true
	is("node 2 is dead", at(1, 0))
	w.claim("a", 1, 3).Ready = false
	is("node 3 starts it", at(1, 0))
	w.claims["a"][2].Ready = true
	is("node 3 has it", at(1, 0), at(3, 1))
	dead[node(2)] = false
	is("node 2 comes back with its old claim", at(1, 0), at(3, 1))
}

func BenchmarkNamesOfTenThousand(b *testing.B) {
	s := spaceOf(b)
	w := &swarm{claims: map[string][]crdt.Claim{}, rank: map[stmt.Key]uint64{}}
	for i := range 10_000 {
		id := fmt.Sprintf("instance%d", i)
		w.specs = append(w.specs, crdt.Spec{ID: id, Name: strings.ToLower(id), Owner: stmt.Key{'o', byte(i % 50)}, Replicas: 2})
		for slot := range 2 {
			c := w.claim(id, slot, byte(i+slot))
			c.Owner, c.Address = w.specs[i].Owner, s.Candidate4(party(c).Identity(), 0).String()
		}
	}
	server, err := dns.New(dns.Config{Zone: names.Zone})
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		w.claims["instance77"][0].Ready = i%2 == 0
		all, _ := NewBook(w, s).Names(nil)
		if err := server.Set(all); err != nil {
			b.Fatal(err)
		}
	}
}
