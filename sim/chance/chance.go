// Package chance gives numbers that a seed and a list of words name: every use of
// chance in the simulator has words of its own, so that one draw more in one place
// shifts none in another.
//
// Guarantees: the same numbers on every machine, and for ever: seeds that people
// wrote down go on to mean what they meant. Non-guarantees: nothing here is hard to
// guess.
package chance

import (
	"math/rand/v2"
	"time"
)

// Mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over a running value.
func Mix(h, v uint64) uint64 {
	h += 0x9e3779b97f4a7c15 + v
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// Draw is the number that seed and words name.
func Draw(seed uint64, words ...uint64) uint64 {
	h := seed
	for _, w := range words {
		h = Mix(h, w)
	}
	return h
}

// Stream is a source of its own for every list of words.
func Stream(seed uint64, words ...uint64) *rand.Rand {
	h := Draw(seed, words...)
	return rand.New(rand.NewPCG(h, Mix(h, 1)))
}

// Unit maps a draw to [0, 1).
func Unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// Between is the time from lo to hi, both included, that a draw stands for.
func Between(lo, hi time.Duration, rng *rand.Rand) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(rng.Int64N(int64(hi-lo)+1))
}
