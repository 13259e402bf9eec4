package live

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Everybody comes once, and no two orders are the same.
func TestEverybodyHasATurn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 3000).Draw(t, "n")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		order := func() (out []int) {
			turn := newTurn(n, rng.Uint64)
			for i, ok := turn.take(); ok; i, ok = turn.take() {
				out = append(out, i)
			}
			return out
		}
		a, b := order(), order()
		if n > 20 && slices.Equal(a, b) {
			t.Fatal("two orders are equal")
		}
		slices.Sort(a)
		for i := range n {
			if len(a) != n || a[i] != i {
				t.Fatalf("of %d come %v", n, a)
			}
		}
	})
}
