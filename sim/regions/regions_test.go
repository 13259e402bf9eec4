package regions

import (
	"testing"
	"time"
)

func number(t *testing.T, name string) int {
	for i := range Count {
		if Of(i).Name == name {
			return i
		}
	}
	t.Fatalf("no region %s", name)
	return 0
}

// The distances were computed apart, by the spherical law of cosines.
func TestRoundTrips(t *testing.T) {
	for _, c := range []struct {
		a, b string
		ms   time.Duration
	}{
		{"ams", "ams", 1},
		{"ams", "fra", 8},   // 367 km
		{"cdg", "lhr", 8},   // 347 km
		{"ewr", "iad", 8},   // 342 km
		{"lax", "sjc", 10},  // 496 km
		{"sjc", "syd", 163}, // 11,970 km
		{"jnb", "nrt", 185}, // 13,582 km
		{"gru", "sin", 217}, // 15,996 km
		{"ams", "syd", 226}, // 16,659 km
		{"gru", "nrt", 250}, // 18,492 km
	} {
		a, b := number(t, c.a), number(t, c.b)
		if got := RoundTrip(a, b); got != c.ms*time.Millisecond || got != RoundTrip(b, a) {
			t.Errorf("%s to %s takes %v and %v back, want %d ms", c.a, c.b, got, RoundTrip(b, a), c.ms)
		}
	}
}

func TestPickFollowsWeights(t *testing.T) {
	var got [Count]int
	const draws = 4453 * 10
	for k := range draws {
		got[Pick((float64(k)+0.5)/draws)]++
	}
	for i, n := range got {
		if want := 10 * Of(i).Weight; n != want {
			t.Errorf("%s is picked %d times of %d, want %d", Of(i).Name, n, draws, want)
		}
	}
	if first, last := Pick(0), Pick(1-1e-16); first != 0 || last != Count-1 {
		t.Errorf("the ends are %d and %d", first, last)
	}
}
