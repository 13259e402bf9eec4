package scenario

import (
	"math"
	"testing"

	"github.com/formthefog/formation/sim/chance"
)

// Machines that live as drawn are, at any moment, as old as the published ones.
func TestLifetimesGiveThePublishedAges(t *testing.T) {
	rng := chance.Stream(1, 2)
	const machines = 20_000
	older := map[float64]int{}
	for range machines {
		now := 2000 + 10*rng.Float64() // long after the beginning
		var up float64
		for at := 0.0; at <= now; at += lifetime(1 - rng.Float64()) {
			up = at
		}
		for _, a := range ages[1:] {
			if now-up >= a.days {
				older[a.days]++
			}
		}
	}
	for _, a := range ages[1:] {
		if got := float64(older[a.days]) / machines; math.Abs(got-a.share) > 0.015 {
			t.Errorf("%.3f are up for %v days or longer, published are %.2f", got, a.days, a.share)
		}
	}
}

func TestAges(t *testing.T) {
	for _, a := range ages {
		if got := age(a.share); math.Abs(got-a.days) > 1e-6 {
			t.Errorf("a share of %v is %v days old, want %v", a.share, got, a.days)
		}
	}
	if got := age(0.01); !(got > 365) || math.IsInf(got, 0) {
		t.Errorf("the oldest are %v days old", got)
	}
}
