package live

import (
	"math/rand/v2"
	"time"

	"github.com/formthefog/formation/sim/regions"
)

// WAN is a network whose nodes are spread over the regions of a fleet, by the seed.
func WAN(nodes int, seed uint64) NetConfig {
	at := places(nodes, seed)
	return NetConfig{
		Delay:  func(from, to int) time.Duration { return regions.RoundTrip(at[from], at[to]) / 2 },
		Jitter: regions.Jitter,
	}
}

// places are the regions of nodes, by number.
func places(nodes int, seed uint64) []int {
	rng := rand.New(rand.NewPCG(seed, 0x77616e))
	at := make([]int, nodes)
	for i := range at {
		at[i] = regions.Pick(rng.Float64())
	}
	return at
}
