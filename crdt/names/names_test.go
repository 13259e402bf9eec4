package names

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
)

// world is a State made by hand.
type world struct {
	specs  []crdt.Spec
	claims []crdt.Claim
	dead   map[stmt.Key]bool
	barred map[stmt.Key]bool
}

func (w *world) Instances() []crdt.Spec { return w.specs }
func (w *world) Claims(id string) []crdt.Claim {
	return slices.DeleteFunc(slices.Clone(w.claims), func(c crdt.Claim) bool { return c.Instance != id })
}
func (w *world) MayRun(_ *crdt.Spec, node stmt.Key) bool { return !w.barred[node] }

func (w *world) Replicas(spec *crdt.Spec) []policy.Party { return policy.Replicas(w, *spec) }

func (w *world) Addresses(p policy.Party) (a4, a6 netip.Addr) {
	if p.Instance == "" {
		return p.Address4, netip.AddrFrom16([16]byte{0: 0xfd, 15: p.Node[1]})
	}
	return p.Address4, netip.AddrFrom16([16]byte{0: 0xfd, 13: p.Instance[0], 14: byte(p.Slot), 15: p.Node[1]})
}

func (w *world) config() Config { return Config{Alive: func(n stmt.Key) bool { return !w.dead[n] }} }

func owner(n byte) stmt.Key { return stmt.Key{'o', n} }
func node(n byte) stmt.Key  { return stmt.Key{'n', n} }

func spec(id, name string, o stmt.Key, replicas int, expose ...string) crdt.Spec {
	return crdt.Spec{ID: id, Name: name, Owner: o, Replicas: replicas, Expose: expose}
}

// claim is a ready one of node n.
func claim(id string, o stmt.Key, slot int, n byte, generation uint64) crdt.Claim {
	key := stmt.Key{'g', id[0], byte(slot), n}
	return crdt.Claim{Node: node(n), Instance: id, Owner: o, Slot: slot, Generation: generation, Ready: true,
		MeshKey: base64.StdEncoding.EncodeToString(key[:]), Address: fmt.Sprintf("10.128.1.%d", n)}
}

// text is names in lines, owners by their number.
func text(names []Name) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%s:", n.Name)
		for _, t := range n.Targets {
			fmt.Fprintf(&b, " %s %s", t.Addr4, t.Addr6)
			if t.Host != n.Name {
				fmt.Fprintf(&b, " (%s)", t.Host)
			}
		}
		for _, p := range n.Ports {
			fmt.Fprintf(&b, " %s=%d", p.Service, p.Port)
		}
		b.WriteByte('\n')
	}
	out := b.String()
	for n := range byte(3) {
		out = strings.ReplaceAll(out, Label(owner(n)), fmt.Sprint("o", n))
	}
	return out
}

func two() *world {
	return &world{
		specs:  []crdt.Spec{spec("a", "app", owner(1), 2, "8080/tcp", "53/udp"), spec("b", "app", owner(2), 1)},
		claims: []crdt.Claim{claim("a", owner(1), 0, 1, 1), claim("a", owner(1), 1, 2, 1), claim("b", owner(2), 0, 1, 1)},
		dead:   map[stmt.Key]bool{}, barred: map[stmt.Key]bool{},
	}
}

func TestNames(t *testing.T) {
	const (
		ports = " _ssh._tcp=22 _8080._tcp=8080 _53._udp=53\n"
		zero  = " 10.128.1.1 fd00::61:1"
		one   = " 10.128.1.2 fd00::61:102"
		rest  = "app.o2: 10.128.1.1 fd00::62:1 (0.app.o2) _ssh._tcp=22\n0.app.o2: 10.128.1.1 fd00::62:1\n"
	)
	for _, tt := range []struct {
		name     string
		change   func(w *world)
		app      string // targets of app.o1
		slots    string
		problems int
	}{
		{"as it is", func(*world) {}, zero + " (0.app.o1)" + one + " (1.app.o1)", "0.app.o1:" + zero + "\n1.app.o1:" + one + "\n", 0},
		{"one is not ready", func(w *world) { w.claims[0].Ready = false }, one + " (1.app.o1)", "0.app.o1:\n1.app.o1:" + one + "\n", 0},
		{"its node is dead", func(w *world) { w.dead[node(2)] = true }, zero + " (0.app.o1)", "0.app.o1:" + zero + "\n1.app.o1:\n", 0},
		{"none is there", func(w *world) { w.claims = w.claims[2:] }, "", "0.app.o1:\n1.app.o1:\n", 0},
		{"node 2 may not run it", func(w *world) { w.barred[node(2)] = true }, zero + " (0.app.o1)", "0.app.o1:" + zero + "\n1.app.o1:\n", 0},
		{"in another's name", func(w *world) { w.claims[1].Owner = owner(2) }, zero + " (0.app.o1)", "0.app.o1:" + zero + "\n1.app.o1:\n", 0},
		{"no guest yet", func(w *world) { w.claims[1].MeshKey = "" }, zero + " (0.app.o1)", "0.app.o1:" + zero + "\n1.app.o1:\n", 0},
		{"it moves and is not ready yet", func(w *world) {
			c := claim("a", owner(1), 1, 3, 2)
			c.Ready = false
			w.claims = append(w.claims, c)
		}, zero + " (0.app.o1)" + one + " (1.app.o1)", "0.app.o1:" + zero + "\n1.app.o1:" + one + "\n", 0},
		{"it has moved", func(w *world) { w.claims = append(w.claims, claim("a", owner(1), 1, 3, 2)) },
			zero + " (0.app.o1) 10.128.1.3 fd00::61:103 (1.app.o1)", "0.app.o1:" + zero + "\n1.app.o1: 10.128.1.3 fd00::61:103\n", 0},
		{"ports that cannot be", func(w *world) {
			w.specs[0].Expose = []string{"8080/tcp", "0/tcp", "08/tcp", "65536/tcp", "80", "80/sctp", "8080/tcp", "/tcp", "53/udp"}
		}, zero + " (0.app.o1)" + one + " (1.app.o1)", "0.app.o1:" + zero + "\n1.app.o1:" + one + "\n", 0},
	} {
		w := two()
		tt.change(w)
		got, problems := Of(w, w.config())
		if want := "app.o1:" + tt.app + ports + tt.slots + rest; text(got) != want || len(problems) != tt.problems {
			t.Errorf("%s: got\n%swant\n%s%v", tt.name, text(got), want, problems)
		}
	}
}

func TestTwoInstancesOfOneName(t *testing.T) {
	w := two()
	w.specs = append(w.specs, spec("c", "app", owner(1), 1), spec("d", "db", owner(1), 0))
	w.claims = append(w.claims, claim("c", owner(1), 0, 3, 1))
	got, problems := OfOwner(w, w.config(), owner(1))
	if want := "app.o1:\ndb.o1: _ssh._tcp=22\n"; text(got) != want || len(problems) != 1 {
		t.Errorf("got\n%s%v", text(got), problems)
	}
}

func TestNodes(t *testing.T) {
	party := func(n byte) policy.Party { return policy.Party{Node: node(n), Ready: true} }
	nodes := []policy.Party{party(1), party(3), party(4)}
	nodes[0].Address4 = netip.MustParseAddr("10.128.2.1")
	w := &world{dead: map[stmt.Key]bool{node(4): true}}
	got := text(OfNodes(w, w.config(), nodes))
	for n := range byte(5) {
		got = strings.ReplaceAll(got, Label(node(n)), fmt.Sprint("n", n))
	}
	if want := "n1.node: 10.128.2.1 fd00::1\nn3.node: invalid IP fd00::3\nn4.node:\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Nobody has more names than fit, and others have theirs all the same.
func TestBounds(t *testing.T) {
	w := &world{}
	for i := range MaxInstances + 10 {
		w.specs = append(w.specs, spec(fmt.Sprint("x", i), fmt.Sprint("x", i), owner(1), 0))
	}
	w.specs = append(w.specs, spec("z", "z", owner(2), 0))
	got, problems := Of(w, w.config())
	if len(got) != MaxInstances+1 || len(problems) != 1 {
		t.Errorf("%d names, %v", len(got), problems)
	}
}

// Every answer is of a claim that is ready, on a node that is there, and of its
// slot no other that could answer is newer.
func TestNoAnswerIsDead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{specs: []crdt.Spec{spec("a", "app", owner(1), 3), spec("b", "web", owner(1), 2)}, dead: map[stmt.Key]bool{}}
		for i := range rapid.IntRange(0, 12).Draw(t, "claims") {
			id := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "instance")
			c := claim(id, owner(1), rapid.IntRange(0, 3).Draw(t, "slot"), byte(i), uint64(rapid.IntRange(1, 9).Draw(t, "generation")*100+i))
			c.Ready = rapid.Bool().Draw(t, "ready")
			w.claims = append(w.claims, c)
			w.dead[c.Node] = rapid.Bool().Draw(t, "dead")
		}
		got, _ := Of(w, w.config())
		for _, s := range w.specs {
			var all []netip.Addr
			for slot := range s.Replicas {
				// The two newest of a slot count; the first of them that can answer does.
				of := slices.DeleteFunc(w.Claims(s.ID), func(c crdt.Claim) bool { return c.Slot != slot })
				slices.SortFunc(of, func(a, b crdt.Claim) int { return int(b.Generation) - int(a.Generation) })
				of = slices.DeleteFunc(of[:min(len(of), 2)], func(c crdt.Claim) bool { return !c.Ready || w.dead[c.Node] })
				var want []netip.Addr
				if len(of) > 0 {
					want = []netip.Addr{netip.MustParseAddr(of[0].Address)}
				}
				all = append(all, want...)
				if a := addresses(got, fmt.Sprintf("%d.%s.%s", slot, s.Name, Label(s.Owner))); !slices.Equal(a, want) {
					t.Fatalf("slot %d of %s: %v, want %v", slot, s.Name, a, want)
				}
			}
			if a := addresses(got, s.Name+"."+Label(s.Owner)); !slices.Equal(a, all) {
				t.Fatalf("%s: %v, want %v", s.Name, a, all)
			}
		}
	})
}

func addresses(names []Name, name string) (out []netip.Addr) {
	for _, n := range names {
		if n.Name == name {
			for _, t := range n.Targets {
				out = append(out, t.Addr4)
			}
		}
	}
	return out
}
