package place

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// A Field answers what Order answers, whoever is alive and whatever it was asked
// before.
func TestAFieldIsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Field{best: rapid.IntRange(0, 4).Draw(t, "best")}
		var cands []Candidate
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			cands = changed(t, cands)
			f.Set(cands)
			compareOrders(t, &f, cands)
		}
	})
}

// What is left out by the chord did not draw better.
func TestAtLeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.Uint64().Draw(t, "x")>>rapid.IntRange(0, 63).Draw(t, "shift") | 1
		low, exact := atLeast(x), negLog2(x)
		if low > exact || exact-low > 1<<logFraction/10 {
			t.Fatalf("%d for %d", low, exact)
		}
	})
}

// changed is another set of candidates, of which some are as they were.
func changed(t *rapid.T, before []Candidate) []Candidate {
	var cands []Candidate
	for i := range rapid.IntRange(0, 12).Draw(t, "nodes") {
		was := slices.IndexFunc(before, func(c Candidate) bool { return c.Key == stmt.Key{byte(i + 1)} })
		switch {
		case was >= 0 && rapid.Bool().Draw(t, "stays"):
			cands = append(cands, before[was])
			continue
		case rapid.IntRange(0, 3).Draw(t, "absent") == 0:
			continue
		}
		c := Candidate{
			Key: stmt.Key{byte(i + 1)}, Alive: true, Region: rapid.SampledFrom([]string{"", "north"}).Draw(t, "region"),
			Total: crdt.Resources{CPUs: rapid.IntRange(1, 4).Draw(t, "cpus"), Memory: 4 << 30, Disk: 100 << 30},
		}
		if d := rapid.IntRange(0, 3).Draw(t, "domain"); d > 0 {
			c.Labels = map[string]string{DomainLabel: fmt.Sprint(d)}
		}
		if rapid.Bool().Draw(t, "operated") {
			c.Operator = stmt.Key{200}
		}
		cands = append(cands, c)
	}
	return cands
}

func compareOrders(t *rapid.T, f *Field, cands []Candidate) {
	for range 8 {
		spec := crdt.Spec{
			ID: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "id"), VCPU: rapid.IntRange(1, 4).Draw(t, "vcpu"),
			Region: rapid.SampledFrom([]string{"", "north"}).Draw(t, "wanted"),
		}
		if rapid.Bool().Draw(t, "restricted") {
			spec.Operators = []stmt.Key{{200}, {1}}
		}
		if rapid.Bool().Draw(t, "labelled") {
			spec.Labels = map[string]string{DomainLabel: "1"}
		}
		able := make([]Candidate, len(cands))
		for i, c := range cands {
			c.Alive, c.Draining = rapid.Bool().Draw(t, "alive"), rapid.Bool().Draw(t, "draining")
			able[i] = c
		}
		var got []stmt.Key
		for i := range f.Order(spec, func(i int) bool { return able[i].Alive && !able[i].Draining }) {
			got = append(got, cands[i].Key)
		}
		if want := Order(spec, able); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		spec.Replicas = rapid.IntRange(1, 3).Draw(t, "replicas")
		held := map[stmt.Key]int{}
		for _, c := range cands {
			if slot := rapid.IntRange(0, 5).Draw(t, "held"); slot < spec.Replicas {
				held[c.Key] = slot
			}
		}
		slot := rapid.IntRange(0, spec.Replicas-1).Draw(t, "slot")
		got = f.Rank(spec, slot, func(i int) bool { return able[i].Alive && !able[i].Draining }, held)
		if want := Rank(spec, slot, able, held); !slices.Equal(got, want) {
			t.Fatalf("slot %d of %d: got %v, want %v", slot, spec.Replicas, got, want)
		}
	}
}
