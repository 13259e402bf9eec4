package des

import (
	"time"

	"github.com/formthefog/formation/sim/chance"
)

// clock is a machine's time since boot, suspension included. It runs at a rate of
// its own.
type clock struct {
	began time.Duration // in virtual time
	shows time.Duration // when it began
	ppm   int64         // so many millionths faster than virtual time
}

// million parts are a whole.
const million = 1_000_000

// at is what it shows at a virtual time.
func (c clock) at(now time.Duration) time.Duration {
	d := now - c.began
	ppm := time.Duration(c.ppm)
	return c.shows + d + d/million*ppm + d%million*ppm/million
}

// when is the first virtual time at which it shows t or more.
func (c clock) when(t time.Duration) time.Duration {
	if t <= c.shows {
		return c.began
	}
	d, rate := t-c.shows, time.Duration(million+c.ppm)
	now := c.began + d/rate*million + d%rate*million/rate
	for c.at(now) < t { // rounded, by a few nanoseconds
		now++
	}
	for c.at(now-1) >= t {
		now--
	}
	return now
}

// Uptimes that clocks begin with: of machines that have been there for long, and of
// one that booted just now.
const (
	longUp = time.Hour
	justUp = time.Minute
)

// drift is how much faster than virtual time a node's clock runs.
func (s *Sim) drift(i int32) int64 {
	d := s.cfg.Drift
	if d == 0 {
		return 0
	}
	return int64(chance.Draw(s.cfg.Seed, useClock, uint64(i))%uint64(2*d+1)) - d
}
