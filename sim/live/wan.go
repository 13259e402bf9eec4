package live

import (
	"time"

	"github.com/formthefog/formation/sim/regions"
)

// WAN is a network whose nodes are spread over the regions of a fleet, by the seed.
func WAN(nodes int, seed uint64) NetConfig {
	at := regions.Places(nodes, seed)
	return NetConfig{
		Delay:  func(from, to int) time.Duration { return regions.RoundTrip(at[from], at[to]) / 2 },
		Jitter: regions.Jitter,
	}
}
