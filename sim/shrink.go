package sim

import (
	"context"
	"slices"

	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/scenario"
)

// Shrink looks for fewer steps of a plan that break the invariant that the whole
// breaks, by delta debugging (Zeller, Hildebrandt: Simplifying and Isolating
// Failure-Inducing Input, 2002): halves, then quarters and so on are left out, as
// long as it still breaks. It runs the plan at most limit times, and returns the
// smallest run found, or nil when the plan does not break of. The end of ctx ends the
// search, with the smallest so far.
func Shrink(ctx context.Context, p *scenario.Plan, mutant des.Mutant, of des.Invariant, limit int) *Result {
	var best *Result
	breaks := func(keep []int) bool {
		if limit <= 0 || ctx.Err() != nil {
			return false
		}
		limit--
		r := runUntil(ctx, p.Only(keep), mutant, of)
		if r.Cut || !r.Broke(of) {
			return false
		}
		r.Only = keep
		best = r
		return true
	}
	keep := make([]int, len(p.Steps))
	for i, s := range p.Steps {
		keep[i] = s.N
	}
	if !breaks(keep) {
		return nil
	}
	for parts := 2; len(keep) > 0; {
		next, ok := without(keep, parts, breaks)
		switch {
		case ok:
			keep, parts = next, max(2, parts-1)
		case parts >= len(keep):
			return best
		default:
			parts = min(len(keep), 2*parts)
		}
		if limit <= 0 || ctx.Err() != nil {
			return best
		}
	}
	return best
}

// without leaves out one of so many parts of keep, the last first: what comes after
// the break has no part in it.
func without(keep []int, parts int, breaks func([]int) bool) ([]int, bool) {
	for i := parts - 1; i >= 0; i-- {
		lo, hi := i*len(keep)/parts, (i+1)*len(keep)/parts
		if lo == hi {
			continue
		}
		if rest := slices.Delete(slices.Clone(keep), lo, hi); breaks(rest) {
			return rest, true
		}
	}
	return nil, false
}
