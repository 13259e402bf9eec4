package des

import (
	"math/rand/v2"
	"time"

	"github.com/formthefog/formation/sim/chance"
)

// The uses of randomness, so that no two share a stream.
const (
	useNode = iota + 1
	useLink
	useDelay
	useKey
	useMesh
	useDetector
	useWorld
	useAuthor
	useClock
	useVoters
	useRelay
	useRegion
	usePack
	useAgain
	useRouter
	useVersion
	useBring
)

// Range is a span of times to draw from, both ends included.
type Range struct{ Min, Max time.Duration }

func (r Range) draw(rng *rand.Rand) time.Duration {
	return chance.Between(r.Min, r.Max, rng)
}

// at is the value that a draw stands for.
func (r Range) at(h uint64) time.Duration {
	return r.Min + time.Duration(chance.Unit(h)*float64(max(0, r.Max-r.Min)))
}
