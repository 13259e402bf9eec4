package scenario

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const good = `about: something
nodes: 10
schedule:
  - {at: 5s, do: kill, node: any}
`

func TestWhatIsWrongIsNamed(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"about: something", "abuot: something", "field abuot not found"},
		{"nodes: 10", "nodes: 3", "nodes: 3, allowed are 6 to 10000"},
		{"kill", "kil", `line 4: nothing is called "kil"`},
		{"node: any", "node: 900", `line 4: "900" is no node`},
		{", node: any", "", "line 4: kill needs node"},
		{"node: any", "node: any, for: 3s", "line 4: kill takes no for"},
		{"at: 5s", "at: 5", "is no time"},
		{"at: 5s", "at: 9s..5s", "is no time"},
		{"at: 5s", "at: 9000h", "at most"},
		{"at: 5s", "at: 5s, then: 3s", "both at and then"},
		{"do: kill, node: any", "do: kill, node: any, each: [{do: heal}]", "one of do, choose and each"},
		{"{at: 5s, do: kill, node: any}", "{at: 5s, repeat: 5x, do: heal}", "is no count"},
		{"{at: 5s, do: kill, node: any}", "{at: 5s, do: loss, share: 1.5}", "not from 0 to 1"},
		{"{at: 5s, do: kill, node: any}", "{at: 5s, choose: [{do: heal, wait: 3}]}", "field wait not found"},
		{"nodes: 10", "nodes: 10\ntiers: [moon]", `"moon" is none of`},
		{"nodes: 10", "nodes: 10\nworkload: {instances: 3}", "workload.replicas"},
		{"nodes: 10", "nodes: 10\nworkload: {changes-after: 3s}", "workload.changes-after"},
		{"nodes: 10", "nodes: 10\nworkload: {changes: 1s, changes-after: -3s}", "workload.changes-after"},
	} {
		_, err := Parse("x", []byte(strings.Replace(good, c.from, c.to, 1)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want %q", c.to, c.from, err, c.want)
		}
	}
	if _, err := Parse("x", []byte(good)); err != nil {
		t.Error(err)
	}
	if _, err := Parse("x", bytes.Repeat([]byte("#"), maxFile+1)); err == nil {
		t.Error("a file without end is read")
	}
}

// A plan is a function of scenario, nodes and seed, in order, and what is left out
// changes nothing about the rest.
func TestExpand(t *testing.T) {
	s, err := Parse("x", []byte(`about: something
nodes: 10
liars: 0.2
newcomers: 0.3
schedule:
  - {at: 9s..12s, do: kill, node: any}
  - {then: 1s..2s, repeat: 2/node, every: 0s..5s, choose: [{do: heal, weight: 3}, {do: stall, node: up, for: 1s..9s}]}
  - {at: 3s, do: drain, node: each}
until: 1m
`))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		seed, nodes := rapid.Uint64().Draw(t, "seed"), rapid.IntRange(MinNodes, 50).Draw(t, "nodes")
		p, err := s.Expand(nodes, seed)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Expand(nodes, seed)
		if err != nil || !bytes.Equal(dump(t, p), dump(t, again)) {
			t.Fatalf("a plan is not repeated (%v)", err)
		}
		if len(p.Steps) != 1+3*nodes {
			t.Fatalf("%d steps", len(p.Steps))
		}
		drained := map[Pick]bool{}
		for i, st := range p.Steps {
			if st.N != i || i > 0 && st.At < p.Steps[i-1].At || st.At > p.End {
				t.Fatalf("step %d: %+v (end %v)", i, st, p.End)
			}
			if st.Do == "drain" {
				drained[st.Node] = true
			}
		}
		if len(drained) != nodes || len(p.Liars) != nodes/5 || len(p.Newcomers) != int(0.3*float64(nodes)) {
			t.Fatalf("drained %d, liars %v, newcomers %v of %d", len(drained), p.Liars, p.Newcomers, nodes)
		}
		few := p.Only([]int{1, 3})
		if len(few.Steps) != 2 || few.Steps[1].Draw != p.Steps[3].Draw || len(p.Steps) != 1+3*nodes {
			t.Fatalf("left out: %+v", few.Steps)
		}
	})
	if _, err := s.Expand(MaxNodes+1, 1); err == nil {
		t.Error("too many nodes")
	}
}

func dump(t *rapid.T, p *Plan) []byte {
	t.Helper()
	b, err := json.Marshal(p.Steps)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVerbsAreSorted(t *testing.T) {
	if !slices.IsSortedFunc(Verbs, func(a, b Verb) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("they are not")
	}
	for _, v := range Verbs {
		for _, f := range append(slices.Clone(v.takes), v.needs...) {
			if !slices.Contains(fields, f) {
				t.Errorf("%s takes %s, which is no field", v.Name, f)
			}
		}
	}
}

// No file makes it fail but by an error, and what is read has a plan within bounds.
func FuzzParse(f *testing.F) {
	all, err := filepath.Glob("../scenarios/*.yaml")
	if err != nil || len(all) == 0 {
		f.Fatal("no scenarios", err)
	}
	for _, name := range all {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse("fuzz", raw)
		if err != nil {
			return
		}
		p, err := s.Expand(MinNodes, 1)
		if err == nil && len(p.Steps) > maxSteps {
			t.Errorf("%d steps", len(p.Steps))
		}
	})
}
