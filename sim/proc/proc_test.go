package proc

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim"
	"github.com/formthefog/formation/sim/scenario"
)

func plan(t *testing.T, text string) *scenario.Plan {
	t.Helper()
	s, err := scenario.Parse("x", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Expand(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWhatTheTierCannotDoIsRefusedByName(t *testing.T) {
	const can = `about: something
nodes: 7
tiers: [proc]
schedule:
  - {at: 5s, do: crash, node: up, kind: daemon}
expect: {settle: 1m, agree: 30s}
sometimes: [crash]
`
	if err := Refuse(plan(t, can), Tier); err != nil {
		t.Errorf("refused: %v", err)
	}
	for _, c := range []struct{ from, to, want string }{
		{"nodes: 7", "nodes: 17", "17 nodes (at most 16)"},
		{"[proc]", "[des, live]", "a scenario that is for des, live alone"},
		{"tiers: [proc]", "drift: 5\nliars: 0.2\nnewcomers: 0.2", "drift; liars; newcomers"},
		{"do: crash, node: up, kind: daemon", "do: clog, node: up", "cannot do: clog"},
		{"kind: daemon", "kind: machine", "crash of a machine"},
		{"do: crash, node: up, kind: daemon", "do: ship, operators: honest", "ship to some operators"},
		{"agree: 30s", "moves: none", "expect.moves"},
		{"agree: 30s", "served-always: true", "expect.served-always"},
		{"agree: 30s", "takeovers: some, deaths: 3s", "expect.deaths; expect.takeovers"},
		{"[crash]", "[bit rot]", "sometimes: bit rot"},
	} {
		err := Refuse(plan(t, strings.Replace(can, c.from, c.to, 1)), Tier)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want %q", c.to, c.from, err, c.want)
		}
	}
	for _, s := range sim.Library() {
		p, err := s.Expand(0, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := Refuse(p, Tier); slices.Contains(s.Tiers, Tier) && err != nil {
			t.Errorf("it says that it is for this tier: %v", err)
		}
		if err := Refuse(p, TierVM); slices.Contains(s.Tiers, TierVM) && err != nil {
			t.Errorf("it says that it is for machines: %v", err)
		}
	}
	machines := strings.Replace(can, "[proc]", "[vm]\nworkload: {instances: 2, replicas: 2}", 1)
	for _, c := range []struct{ from, to, want string }{
		{"kind: daemon", "kind: machine", ""},
		{"crash, node: up, kind: daemon", "suspend, node: up, for: 5s", ""},
		{"crash, node: up, kind: daemon", "disk-full, node: up, for: 5s", "the vm tier cannot do: disk-full"},
		{"instances: 2", "instances: 5", "10 machines (at most 8)"},
		{"crash, node: up, kind: daemon", "ship, node: up, replicas: 5", "9 machines (at most 8)"},
	} {
		err := Refuse(plan(t, strings.Replace(machines, c.from, c.to, 1)), TierVM)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q with machines: %v, want %q", c.to, err, c.want)
		}
	}
	if !slices.IsSorted(verbs) || !slices.IsSorted(words) {
		t.Error("verbs or words are not sorted")
	}
}

// The table is made anew each time, so that rules are what they are to be whatever
// there was.
func TestRules(t *testing.T) {
	const head = "table inet formsim\ndelete table inet formsim\ntable inet formsim {\n\tchain in {\n\t\ttype filter hook input priority 0;\n"
	from := []netip.Addr{address(0), address(6)}
	for _, c := range []struct {
		w    wall
		want string
	}{
		{wall{}, ""},
		{wall{loss: 0.00001}, ""},
		{wall{loss: 0.02}, "\t\tiifname != \"lo\" numgen random mod 10000 < 200 drop\n"},
		{wall{from: from, loss: 1}, "\t\tip saddr { 44.128.0.1, 44.128.0.7 } drop\n\t\tiifname != \"lo\" drop\n"},
	} {
		if got, want := c.w.rules(), head+c.want+"\t}\n}\n"; got != want {
			t.Errorf("%+v:\n%s\nwant\n%s", c.w, got, want)
		}
	}
}

// An acknowledged statement that a node does not have is noticed, whichever it is,
// unless a later one has superseded it.
func TestWhatIsLostIsNoticed(t *testing.T) {
	network := stmt.NewNetworkID("x", stmt.Key{})
	o := newOwner(1, 0)
	au, err := crdt.NewAuthor(o.key, network, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec := crdt.Spec{Name: "web", Pack: "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", Replicas: 2, Phase: crdt.PhaseRunning}
	id, made, err := au.Create(spec)
	if err != nil {
		t.Fatal(err)
	}
	scaled, err := au.Set(id, func(s *crdt.Spec) { s.Replicas = 3 })
	if err != nil {
		t.Fatal(err)
	}
	o.acked = slices.Concat(made, scaled)
	specs, err := o.believes(o.acked, network)
	if err != nil || len(specs) != 1 || specs[0].Replicas != 3 {
		t.Fatalf("all is there: %v, %v", specs, err)
	}
	for i := range o.acked {
		some := slices.Delete(slices.Clone(o.acked), i, i+1)
		if _, err := o.believes(some, network); err == nil {
			t.Errorf("statement %d of %d is lost, and it is not noticed", i, len(o.acked))
		}
	}
	if specs, err = o.believes(nil, network); err == nil || len(specs) > 0 {
		t.Errorf("nothing is there: %v, %v", specs, err)
	}
	gone, err := au.Delete(id)
	if err != nil {
		t.Fatal(err)
	}
	o.acked = append(o.acked, gone...)
	if specs, err = o.believes(gone, network); err != nil || len(specs) > 0 {
		t.Errorf("it was deleted: %v, %v", specs, err)
	}
}

func TestListingsAreCompared(t *testing.T) {
	one := func(live, replicas string) map[string]any {
		return map[string]any{
			"id": "a", "live": live, "status": "PENDING", "desired": replicas,
			"replicas": []any{map[string]any{"slot": 0, "live": live}},
		}
	}
	text := func(m map[string]any) string {
		s, err := shared(m)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, c := text(one("alive", "2")), text(one("dead", "2")), text(one("alive", "3"))
	if a != b {
		t.Errorf("%s, and %s", a, b)
	}
	for _, d := range []struct {
		b    map[string]string
		want bool
	}{{map[string]string{"x": b}, false}, {map[string]string{"x": c}, true}, {nil, true}, {map[string]string{"x": a, "y": a}, true}} {
		if got := difference(map[string]string{"x": a}, d.b); (got != "") != d.want {
			t.Errorf("%v: %q", d.b, got)
		}
	}
}

// What is due comes in its order, the earlier said first of two at one time.
func TestDueInOrder(t *testing.T) {
	var list []due
	var did []int
	for i, at := range []time.Duration{5, 1, 5, 3, 1} {
		list = insert(list, due{at, func(context.Context) error { did = append(did, i); return nil }})
	}
	for _, d := range list {
		if err := d.do(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(did, []int{1, 4, 3, 0, 2}) {
		t.Error(did)
	}
}
