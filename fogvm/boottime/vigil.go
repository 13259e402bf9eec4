package boottime

import (
	"context"
	"sync"
	"time"
)

// Gap is how long a process must not have run for a Vigil to say that it slept:
// longer than a busy machine makes anybody wait, and about as long as others take
// to hold a silent node for dead.
const Gap = 5 * time.Second

// lookEvery is how often a Vigil that runs looks at the clock.
const lookEvery = time.Second

// Vigil notices that the process slept: that the machine was suspended, or the
// process stopped or starved, for more than Gap. Whoever acts on what it knows
// asks [Vigil.Woke] first; whichever goroutine runs first after a sleep, the
// answer is news then. Its methods are safe for concurrent use.
type Vigil struct {
	now     func() time.Duration
	changed chan struct{}

	mu         sync.Mutex
	last, woke time.Duration
}

// NewVigil begins a vigil by a clock; nil: Now.
func NewVigil(now func() time.Duration) *Vigil {
	if now == nil {
		now = Now
	}
	return &Vigil{now: now, changed: make(chan struct{}, 1), last: now()}
}

// Woke is when the process went on after it last slept; 0: it has not.
func (v *Vigil) Woke() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.now()
	if now-v.last > Gap {
		v.woke = now
		select {
		case v.changed <- struct{}{}:
		default:
		}
	}
	v.last = max(v.last, now)
	return v.woke
}

// Changed has an element after Woke has changed.
func (v *Vigil) Changed() <-chan struct{} { return v.changed }

// Run looks until ctx ends. Without it a Vigil that nobody asks would take that
// for sleep.
func (v *Vigil) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			v.Woke()
		}
	}
}
