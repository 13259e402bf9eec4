package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// fleet is a Fleet made by hand.
type fleet struct {
	nodes   []crdt.Node
	devices map[stmt.Key][]crdt.Device
	root    stmt.Key
	rank    map[stmt.Key]uint64
}

func (f *fleet) Nodes() []crdt.Node                { return f.nodes }
func (f *fleet) Devices(o stmt.Key) []crdt.Device  { return f.devices[o] }
func (f *fleet) Root() stmt.Key                    { return f.root }
func (f *fleet) Rank(k stmt.Key) uint64            { return f.rank[k] }
func node(n int) crdt.Node                         { return crdt.Node{Key: id('n', n), MeshKey: mesh('n', n)} }
func operated(n crdt.Node, by stmt.Key) crdt.Node  { n.Operator = by; return n }
func agreed(n crdt.Node, by stmt.Key) crdt.Node    { return naming(operated(n, by), by) }
func naming(n crdt.Node, by ...stmt.Key) crdt.Node { n.Named, n.Operators = by, []byte{1}; return n }
func nodeNames(ps []Party) string {
	var out []string
	for _, p := range ps {
		if p.IsNode() {
			out = append(out, fmt.Sprint(p.Node[1]))
		} else {
			out = append(out, p.Name)
		}
	}
	return strings.Join(out, " ")
}

// lists has an owner list nodes as its own.
func lists(owner stmt.Key, nodes ...int) func(*fleet) {
	return func(f *fleet) {
		for _, n := range nodes {
			f.devices[owner] = append(f.devices[owner], crdt.Device{Key: id('n', n), Node: true})
		}
	}
}

func TestWhoReachesNodes(t *testing.T) {
	a, b := id('o', 1), id('o', 2)
	for _, tt := range []struct {
		name   string
		nodes  []crdt.Node
		change func(f *fleet)
		first  string // peers of node 1
		laptop string // nodes of a's laptop
	}{
		{"nobody is named", []crdt.Node{node(1), node(2), node(3)}, nil, "2 3", ""},
		{"in an open network", []crdt.Node{node(1), node(2)}, func(f *fleet) { f.root = stmt.Key{} }, "", ""},
		{"one operator", []crdt.Node{agreed(node(1), a), agreed(node(2), a), agreed(node(3), b), node(4)}, nil, "laptop1 2", "1 2"},
		{"the root alone says it", []crdt.Node{operated(node(1), a), operated(node(2), a)}, nil, "2", ""},
		{"they alone say it", []crdt.Node{naming(node(1), a), naming(node(2), a), node(3)}, nil, "", ""},
		{"they and the owner", []crdt.Node{naming(node(1), a), naming(node(2), a), naming(node(3), a)}, lists(a, 1, 2), "laptop1", "1 2"},
		{"the owner alone says it", []crdt.Node{node(1), naming(node(2), b)}, lists(a, 1, 2), "", ""},
		{"another owner says it", []crdt.Node{naming(node(1), a)}, lists(b, 1), "", ""},
		{"as a device", []crdt.Node{naming(node(1), a)}, func(f *fleet) { f.devices[a] = append(f.devices[a], crdt.Device{Key: id('n', 1)}) }, "", ""},
		{"the root's word and its own", []crdt.Node{naming(operated(node(1), b), a, b), operated(node(2), b)}, lists(a, 1), "laptop1 laptop2 2", "1"},
		{"the root says another", []crdt.Node{naming(operated(node(1), b), a), operated(node(2), b)}, nil, "2", ""},
		{"a word that cannot be read", []crdt.Node{{Key: id('n', 1), MeshKey: mesh('n', 1), Operators: []byte{1}}, node(2)}, nil, "", ""},
		{"no device", []crdt.Node{{Key: id('n', 1), Operator: a}, agreed(node(2), a)}, nil, "", "2"},
		{"the other has none", []crdt.Node{agreed(node(1), a), {Key: id('n', 2), Operator: a}}, nil, "laptop1", "1"},
		{"the laptop has no key", []crdt.Node{agreed(node(1), a)}, func(f *fleet) { f.devices[a][0].MeshKey = stmt.Key{} }, "", ""},
		{"another's key, taken later", []crdt.Node{node(1), {Key: id('n', 0), MeshKey: mesh('n', 1)}, node(2)}, func(f *fleet) { f.rank[id('n', 0)] = 1 }, "2", ""},
		{"another's key, had first", []crdt.Node{node(1), {Key: id('n', 7), MeshKey: mesh('n', 1)}, node(2)}, func(f *fleet) { f.rank[id('n', 1)] = 1 }, "", ""},
		{"a laptop's key", []crdt.Node{agreed(node(1), a), agreed(crdt.Node{Key: id('n', 2), MeshKey: mesh('d', 1)}, a)}, nil, "laptop1", "1"},
	} {
		f := &fleet{nodes: tt.nodes, devices: map[stmt.Key][]crdt.Device{a: {device(1, 1)}, b: {device(2, 2)}}, root: id('R', 0), rank: map[stmt.Key]uint64{}}
		if tt.change != nil {
			tt.change(f)
		}
		if got := nodeNames(OfNode(f, id('n', 1))); got != tt.first {
			t.Errorf("%s: node 1 talks with %q, want %q", tt.name, got, tt.first)
		}
		if got := nodeNames(NodesOf(f, a, id('d', 1))); got != tt.laptop {
			t.Errorf("%s: a's laptop talks with %q, want %q", tt.name, got, tt.laptop)
		}
		if got := OfNode(f, id('n', 99)); got != nil {
			t.Errorf("%s: a node that is not talks with %v", tt.name, got)
		}
		if got := NodesOf(f, b, id('d', 1)); got != nil {
			t.Errorf("%s: a's laptop in b's name talks with %v", tt.name, got)
		}
	}
}

// The same as a model that asks each pair, and mutual.
func TestNodesAsAModelSays(t *testing.T) {
	owners := []stmt.Key{{}, id('o', 1), id('o', 2)}
	rapid.Check(t, func(t *rapid.T) {
		f := &fleet{devices: map[stmt.Key][]crdt.Device{}, rank: map[stmt.Key]uint64{}}
		if rapid.Bool().Draw(t, "root") {
			f.root = id('R', 0)
		}
		for o := 1; o <= 2; o++ {
			for d := range rapid.IntRange(0, 2).Draw(t, "devices") {
				f.devices[owners[o]] = append(f.devices[owners[o]], device(o, 10*o+d))
			}
		}
		for n := range rapid.IntRange(0, 8).Draw(t, "nodes") {
			v := operated(node(n), rapid.SampledFrom(owners).Draw(t, "operator"))
			if named := rapid.SampledFrom(owners).Draw(t, "named"); !named.IsZero() {
				v = naming(v, named)
			}
			if rapid.IntRange(0, 4).Draw(t, "none") == 0 {
				v.MeshKey = stmt.Key{}
			} else if rapid.IntRange(0, 4).Draw(t, "copies") == 0 {
				v.MeshKey = mesh('n', 0)
			}
			if rapid.Bool().Draw(t, "listed") {
				lists(rapid.SampledFrom(owners[1:]).Draw(t, "by"), n)(f)
			}
			f.rank[v.Key] = uint64(rapid.IntRange(0, 1).Draw(t, "rank"))
			f.nodes = append(f.nodes, v)
		}
		runs := func(n crdt.Node, o stmt.Key) bool {
			return slices.Contains(n.Named, o) && (n.Operator == o ||
				slices.ContainsFunc(f.devices[o], func(d crdt.Device) bool { return d.Key == n.Key }))
		}
		counts := func(n crdt.Node) bool {
			return !n.MeshKey.IsZero() && !slices.ContainsFunc(f.nodes, func(o crdt.Node) bool {
				return o.MeshKey == n.MeshKey && (f.rank[o.Key] < f.rank[n.Key] || f.rank[o.Key] == f.rank[n.Key] && o.Key.Compare(n.Key) < 0)
			})
		}
		together := func(x, y crdt.Node) bool {
			return x.Key != y.Key && (!x.Operator.IsZero() && x.Operator == y.Operator ||
				!f.root.IsZero() && x.Operator.IsZero() && y.Operator.IsZero() && x.Named == nil && y.Named == nil)
		}
		has := func(ps []Party, key stmt.Key) bool {
			return slices.ContainsFunc(ps, func(p Party) bool { return p.Key == Key(key) })
		}
		for _, x := range f.nodes {
			peers := OfNode(f, x.Key)
			if len(peers) > MaxPeers || has(peers, x.MeshKey) {
				t.Fatalf("%s has %d peers, or itself", x.Key, len(peers))
			}
			for _, y := range f.nodes {
				if got, want := has(peers, y.MeshKey), counts(x) && counts(y) && together(x, y); got != want && counts(y) {
					t.Fatalf("node %d has node %d: %v, want %v", x.Key[1], y.Key[1], got, want)
				}
			}
			for _, o := range owners[1:] {
				for _, d := range f.devices[o] {
					if d.Node {
						continue
					}
					want := counts(x) && runs(x, o)
					if has(peers, d.MeshKey) != want || counts(x) && has(NodesOf(f, o, d.Key), x.MeshKey) != want {
						t.Fatalf("node %d and device %d: want %v both ways", x.Key[1], d.Key[1], want)
					}
				}
			}
		}
	})
}

// In a group that is too large for all to be peers, each has who has it.
func TestLargeGroupIsARing(t *testing.T) {
	f := &fleet{root: id('R', 0), rank: map[stmt.Key]uint64{}}
	for i := range 3 * MaxPeers {
		k := stmt.Key{'n', byte(i >> 8), byte(i)}
		f.nodes = append(f.nodes, crdt.Node{Key: k, MeshKey: stmt.Key{'m', byte(i >> 8), byte(i)}})
	}
	at := func(i int) []Party { return OfNode(f, f.nodes[i].Key) }
	for _, i := range []int{0, 1, 1500, len(f.nodes) - 1} {
		peers := at(i)
		if len(peers) != 2*around {
			t.Fatalf("node %d has %d peers", i, len(peers))
		}
		for _, j := range []int{0, len(peers) / 2, len(peers) - 1} {
			if !slices.ContainsFunc(OfNode(f, peers[j].Node), func(p Party) bool { return p.Node == f.nodes[i].Key }) {
				t.Errorf("%s is a peer of node %d, and has it not", peers[j].Node, i)
			}
		}
	}
}
