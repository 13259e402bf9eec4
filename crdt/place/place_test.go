package place

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

func key(i int) stmt.Key { return stmt.Key{1, byte(i >> 8), byte(i)} }

func fleet(n int, memory func(i int) uint64) []Candidate {
	out := make([]Candidate, n)
	for i := range out {
		out[i] = Candidate{Key: key(i), Total: crdt.Resources{CPUs: 64, Memory: memory(i), Disk: 1 << 40}, Alive: true}
	}
	return out
}

func gib(n uint64) func(int) uint64 { return func(int) uint64 { return n << 30 } }

func spec(i, replicas int) crdt.Spec {
	return crdt.Spec{ID: fmt.Sprintf("instance-%d", i), Replicas: replicas, VCPU: 1, MemoryBytes: 1 << 28}
}

func without(cands []Candidate, k stmt.Key) []Candidate {
	return slices.DeleteFunc(slices.Clone(cands), func(c Candidate) bool { return c.Key == k })
}

// A node that leaves moves only its own replicas; the order of the view and of
// the machine that computes does not matter.
func TestOrderIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "nodes")
		cands := fleet(n, func(int) uint64 { return rapid.Uint64Range(1, 64).Draw(t, "GiB") << 30 })
		s := spec(rapid.IntRange(0, 1000).Draw(t, "instance"), rapid.IntRange(1, 5).Draw(t, "replicas"))
		order := Order(s, cands)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		shuffled := slices.Clone(cands)
		rng.Shuffle(n, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if got := Order(s, shuffled); !slices.Equal(got, order) {
			t.Fatalf("another order of the view gives %v, want %v", got, order)
		}
		gone := key(rng.IntN(n))
		want := slices.DeleteFunc(slices.Clone(order), func(k stmt.Key) bool { return k == gone })
		if got := Order(s, without(cands, gone)); !slices.Equal(got, want) {
			t.Fatalf("without %v: %v, want %v", gone, got, want)
		}
	})
}

// Slots prefer distinct nodes; holders keep theirs; when one dies only its slot
// changes hands.
func TestRankSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 12).Draw(t, "nodes")
		r := rapid.IntRange(1, 5).Draw(t, "replicas")
		cands, s := fleet(n, gib(8)), spec(rapid.IntRange(0, 1000).Draw(t, "instance"), r)
		held := map[stmt.Key]int{}
		for slot := range r {
			ranked := Rank(s, slot, cands, nil)
			if len(ranked) != n {
				t.Fatalf("slot %d ranks %d of %d nodes", slot, len(ranked), n)
			}
			if slot < n {
				if _, twice := held[ranked[0]]; twice {
					t.Fatalf("%v is preferred for two slots", ranked[0])
				}
				held[ranked[0]] = slot
			}
		}
		if want := Order(s, cands)[:min(r, n)]; len(held) != len(want) {
			t.Fatalf("%d nodes are preferred, want %v", len(held), want)
		}
		dead := key(rapid.IntRange(0, n-1).Draw(t, "dead"))
		left := without(cands, dead)
		for k, slot := range held {
			ranked := Rank(s, slot, left, held)
			if k != dead && ranked[0] != k {
				t.Fatalf("slot %d moved from %v to %v when %v died", slot, k, ranked[0], dead)
			}
			if _, holds := held[ranked[0]]; k == dead && holds && n > min(r, n) {
				t.Fatalf("slot %d of the dead goes to %v, which holds another, though nodes are free", slot, ranked[0])
			}
		}
	})
}

// First places follow the weights.
func TestWeightsAreProportional(t *testing.T) {
	cands := fleet(4, func(i int) uint64 { return []uint64{4, 8, 16, 32}[i] << 30 })
	const n = 30000
	first := map[stmt.Key]int{}
	for i := range n {
		first[Order(spec(i, 1), cands)[0]]++
	}
	for i, share := range []float64{4. / 60, 8. / 60, 16. / 60, 32. / 60} {
		got := float64(first[key(i)]) / n
		if tolerance := 5 * math.Sqrt(share*(1-share)/n); math.Abs(got-share) > tolerance {
			t.Errorf("node %d comes first in %.4f, want %.4f ± %.4f", i, got, share, tolerance)
		}
	}
}

// The integer logarithm is the logarithm.
func TestNegLog2(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.Uint64Min(1).Draw(t, "x") >> rapid.IntRange(0, 63).Draw(t, "shift")
		x = max(x, 1)
		want := 64 - math.Log2(float64(x))
		if got := float64(negLog2(x)) / (1 << logFraction); math.Abs(got-want) > 1e-9 {
			t.Fatalf("negLog2(%d) = %v, want %v", x, got, want)
		}
	})
	for x, want := range map[uint64]uint64{1: 64 << logFraction, 1 << 63: 1 << logFraction, 1 << 62: 2 << logFraction} {
		if got := negLog2(x); got != want {
			t.Errorf("negLog2(%d) = %d, want %d", x, got, want)
		}
	}
}

// A golden order: every machine and version must compute this one.
func TestOrderGolden(t *testing.T) {
	cands := fleet(5, func(i int) uint64 { return uint64(i+1) << 33 })
	var got []byte
	for _, k := range Order(spec(7, 3), cands) {
		got = append(got, k[2])
	}
	if want := []byte{0, 4, 3, 2, 1}; !slices.Equal(got, want) {
		t.Fatalf("order %v, want %v", got, want)
	}
}

func TestEligible(t *testing.T) {
	op := key(77)
	base := Candidate{
		Key: key(1), Operator: op, Total: crdt.Resources{CPUs: 4, Memory: 8 << 30, Disk: 100 << 30},
		Labels: map[string]string{"disk": "ssd"}, Region: "eu", GPU: "a100:2", Alive: true,
	}
	for _, tt := range []struct {
		name string
		spec crdt.Spec
		with func(*Candidate)
		want string
	}{
		{"plain", crdt.Spec{VCPU: 4, MemoryBytes: 8 << 30}, nil, ""},
		{"dead", crdt.Spec{}, func(c *Candidate) { c.Alive = false }, "not alive"},
		{"draining", crdt.Spec{}, func(c *Candidate) { c.Draining = true }, "draining"},
		{"critical key unknown", crdt.Spec{Critical: []string{"tpm"}}, nil, "the spec needs a newer version: tpm"},
		{"operator listed", crdt.Spec{Operators: []stmt.Key{op}}, nil, ""},
		{"node listed", crdt.Spec{Operators: []stmt.Key{key(1)}}, nil, ""},
		{"operator not listed", crdt.Spec{Operators: []stmt.Key{key(2)}}, nil, "not on the operators list"},
		{"region", crdt.Spec{Region: "us"}, nil, `region "eu", wanted "us"`},
		{"label", crdt.Spec{Labels: map[string]string{"disk": "ssd"}}, nil, ""},
		{"label differs", crdt.Spec{Labels: map[string]string{"disk": "hdd"}}, nil, "label disk=hdd missing"},
		{"gpu", crdt.Spec{GPU: "a100:2"}, nil, ""},
		{"gpu count", crdt.Spec{GPU: "a100:3"}, nil, `GPU "a100:2", wanted "a100:3"`},
		{"memory", crdt.Spec{MemoryBytes: 9 << 30}, nil, "too small: 8192 MiB of memory, needs 9216"},
	} {
		c := base
		if tt.with != nil {
			tt.with(&c)
		}
		if ok, reason := Eligible(tt.spec, c); reason != tt.want || ok != (tt.want == "") {
			t.Errorf("%s: %v %q, want %q", tt.name, ok, reason, tt.want)
		}
	}
}
