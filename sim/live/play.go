package live

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

// Tier is this one's name in scenarios.
const Tier = "live"

// Result is what came of a scenario.
type Result struct {
	Scenario string        `json:"scenario"`
	Tier     string        `json:"tier"`
	Nodes    int           `json:"nodes"`
	Seed     uint64        `json:"seed"`
	Steps    int           `json:"steps"`
	Virtual  time.Duration `json:"virtualNanoseconds"`
	Cut      bool          `json:"cut,omitempty"` // it was stopped before its end, and judged by nothing that comes then
	Notes    []string      `json:"notes"`
	Bad      []des.Broken  `json:"bad"`
	// Metrics are its figures, but for those that are Unknown, and Recording is what
	// happened.
	Metrics   record.Metrics    `json:"metrics"`
	Unknown   []string          `json:"unknown"`
	Recording *record.Recording `json:"-"`
}

// What a scenario may expect of this tier.
const (
	settles   des.Invariant = "settles"
	delivers  des.Invariant = "delivery"
	sometimes des.Invariant = "sometimes"
	carried   des.Invariant = "carried-out" // every step could be
)

// steps are the verbs of scenarios that this tier carries out.
var steps = map[string]func(r *run, s scenario.Step, rng *rand.Rand) error{
	"bounce": at(func(r *run, i int, s scenario.Step, _ *rand.Rand) error {
		r.Crash(i, s.Kind == "machine")
		r.later(s.For, i)
		return nil
	}),
	"change":  (*run).change,
	"clog":    at(func(r *run, i int, _ scenario.Step, _ *rand.Rand) error { r.Clog(i); return nil }),
	"crash":   at(func(r *run, i int, s scenario.Step, _ *rand.Rand) error { r.Crash(i, s.Kind == "machine"); return nil }),
	"cut":     at((*run).cut),
	"heal":    func(r *run, _ scenario.Step, _ *rand.Rand) error { r.Heal(); return nil },
	"isolate": at(func(r *run, i int, _ scenario.Step, _ *rand.Rand) error { r.split([]int{i}); return nil }),
	"join":    (*run).join,
	"kill": at(func(r *run, i int, _ scenario.Step, _ *rand.Rand) error {
		r.Crash(i, true)
		r.gone[i] = true
		return nil
	}),
	"loss": func(r *run, s scenario.Step, _ *rand.Rand) error { r.lossy(s.Share); return nil },
	"partition": func(r *run, s scenario.Step, rng *rand.Rand) error {
		r.split(rng.Perm(r.Nodes())[:max(1, int(cmp.Or(s.Share, 0.5)*float64(r.Nodes())))])
		return nil
	},
	"ship": at(func(r *run, i int, s scenario.Step, _ *rand.Rand) error { return r.ship(i, s.Name, s.Replicas) }),
	"slow": at(func(r *run, i int, s scenario.Step, _ *rand.Rand) error {
		r.Slow(i, s.By)
		r.after(s.For, func() error { r.Slow(i, 0); return nil })
		return nil
	}),
	"start": at(func(r *run, i int, _ scenario.Step, _ *rand.Rand) error { return r.Start(0, i) }),
	"torn-log": at(func(r *run, i int, s scenario.Step, _ *rand.Rand) error {
		r.Crash(i, true)
		r.later(s.For, i)
		return nil
	}),
	"unclog": at(func(r *run, i int, _ scenario.Step, _ *rand.Rand) error { r.Unclog(i); return nil }),
}

// Refuses says what of a plan this tier cannot do: a step, or a node that is picked
// by what it runs, for nothing runs here but the state.
func Refuses(p *scenario.Plan) error {
	var errs []error
	no := func(format string, args ...any) { errs = append(errs, fmt.Errorf("tier live: "+format, args...)) }
	if !slices.Contains(p.Tiers, Tier) {
		no("scenario %s is not made for it", p.Name)
	}
	if p.Nodes > MaxNodes {
		no("%d nodes, at most %d", p.Nodes, MaxNodes)
	}
	if len(p.Newcomers) == p.Nodes {
		no("nobody is there at first")
	}
	if len(p.Liars) > 0 {
		no("nobody can lie")
	}
	seen := map[string]bool{}
	for _, s := range p.Steps {
		if steps[s.Do] == nil && !seen[s.Do] {
			no("cannot do: %s", s.Do)
		}
		if slices.Contains([]scenario.Pick{scenario.Running, scenario.Serving, scenario.Drained}, s.Node) && !seen[string(s.Node)] {
			no("cannot pick: %s", s.Node)
		}
		seen[s.Do], seen[string(s.Node)] = true, true
	}
	return errors.Join(errs...)
}

// Ignores says whether something is expected that this tier does not look at: more
// than that all agree within a time, and that changes come to all within one.
func Ignores(e scenario.Expect) bool {
	e.Settle, e.Delivery = 0, 0
	return e != scenario.Expect{}
}

// Play carries out a plan that is not refused. The end of ctx, which must not be of
// virtual time, cuts it short: the result is of what there was until then.
func Play(ctx context.Context, t *testing.T, p *scenario.Plan) (res *Result) {
	net := NetConfig{Jitter: 0.2}
	if p.Network.Regions {
		net = WAN(p.Nodes, p.Seed)
	} else {
		net.Delay = func(from, to int) time.Duration {
			return chance.Between(5*time.Millisecond, 60*time.Millisecond, chance.Stream(p.Seed, uint64(min(from, to)), uint64(max(from, to))))
		}
	}
	var first []int
	for i := 0; i < p.Nodes && len(first) < 3; i++ {
		if !slices.Contains(p.Newcomers, i) {
			first = append(first, i)
		}
	}
	Run(t, Config{Nodes: p.Nodes, Seed: p.Seed, Net: net, Founders: first}, func(_ *testing.T, s *Swarm) {
		r := &run{
			Swarm: s, ctx: ctx, plan: p, gone: map[int]bool{}, rng: chance.Stream(p.Seed, 0x6c697665),
			res: &Result{Scenario: p.Name, Tier: Tier, Nodes: p.Nodes, Seed: p.Seed, Steps: len(p.Steps), Notes: []string{}, Bad: []des.Broken{}, Unknown: unknown},
		}
		err := r.whole()
		if r.res.Cut = ctx.Err() != nil; err != nil && !r.res.Cut {
			r.fail(carried, "%v", err)
		}
		r.res.Virtual, r.res.Metrics = r.Now()-r.zero, r.metrics()
		r.res.Notes = append(r.res.Metrics.Words(unknown), r.res.Notes...)
		if r.res.Cut {
			r.note("cut short after %v: nothing is said of what comes later", r.res.Virtual)
		}
		r.res.Recording = r.recording()
		res = r.res
	})
	return res
}
