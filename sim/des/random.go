package des

import (
	"math/rand/v2"
	"time"
)

// mix is the finaliser of SplitMix64 over a running value.
func mix(h, v uint64) uint64 {
	h += 0x9e3779b97f4a7c15 + v
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

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
)

// draw is a number that seed and words give.
func draw(seed uint64, words ...uint64) uint64 {
	h := seed
	for _, w := range words {
		h = mix(h, w)
	}
	return h
}

// stream is a source of its own for every list of words.
func stream(seed uint64, words ...uint64) *rand.Rand {
	h := draw(seed, words...)
	return rand.New(rand.NewPCG(h, mix(h, 1)))
}

// unit maps a draw to [0, 1).
func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// Range is a span of times to draw from, both ends included.
type Range struct{ Min, Max time.Duration }

func (r Range) draw(rng *rand.Rand) time.Duration {
	if r.Max <= r.Min {
		return r.Min
	}
	return r.Min + time.Duration(rng.Int64N(int64(r.Max-r.Min)+1))
}

// at is the value that a draw stands for.
func (r Range) at(h uint64) time.Duration {
	return r.Min + time.Duration(unit(h)*float64(max(0, r.Max-r.Min)))
}
