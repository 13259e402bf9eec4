package sim

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

// Result is what came of a run.
type Result struct {
	Scenario string        `json:"scenario"`
	Nodes    int           `json:"nodes"`
	Seed     uint64        `json:"seed"`
	Steps    int           `json:"steps"` // of the schedule
	Only     []int         `json:"only,omitempty"`
	Events   uint64        `json:"events"`
	Virtual  time.Duration `json:"virtualNanoseconds"`
	Hash     string        `json:"hash"`          // of every event
	Cut      bool          `json:"cut,omitempty"` // it was stopped before its end, and judged by nothing that comes then
	Notes    []string      `json:"notes"`
	// Metrics are its figures, and Recording is what happened.
	Metrics   record.Metrics    `json:"metrics"`
	Recording *record.Recording `json:"-"`
	Bad       []des.Broken      `json:"bad"` // invariants that did not hold
	mutant    des.Mutant
}

// Replay is the command that repeats the run.
func (r *Result) Replay() string {
	cmd := fmt.Sprintf("form sim replay %s --nodes %d --seed %d", r.Scenario, r.Nodes, r.Seed)
	if r.Only != nil {
		cmd += " --only " + cmp.Or(strings.Trim(strings.ReplaceAll(fmt.Sprint(r.Only), " ", ","), "[]"), "none")
	}
	return cmd
}

// Broke says whether an invariant did not hold.
func (r *Result) Broke(of des.Invariant) bool {
	return slices.ContainsFunc(r.Bad, func(b des.Broken) bool { return b.Of == of })
}

// Run carries out a plan, with something broken by a mutant if it is not empty. The end
// of ctx cuts it short: the result is of what there was until then.
func Run(ctx context.Context, p *scenario.Plan, mutant des.Mutant) *Result {
	return runUntil(ctx, p, mutant, "")
}

// runUntil is Run up to where an invariant breaks: for SameHash, a run and another.
func runUntil(ctx context.Context, p *scenario.Plan, mutant des.Mutant, broken des.Invariant) *Result {
	if broken == SameHash {
		r, again := Run(ctx, p, mutant), Run(ctx, p, mutant)
		if !again.Cut {
			r.Compare(again)
		}
		return r
	}
	o := newObserver()
	cfg := des.Config{
		Seed: p.Seed, Nodes: p.Nodes, Drift: p.Drift, Domains: p.Domains, Mutant: mutant, Watch: o,
		Cut: func() bool { return ctx.Err() != nil },
		Net: des.NetConfig{Regions: p.Network.Regions, Loss: p.Network.Loss, Duplicate: p.Network.Duplicate, Damage: p.Network.Damage},
	}
	r := &run{
		observer: o,
		Sim:      des.New(cfg), plan: p, until: broken, names: map[string]string{}, exposed: map[string]bool{}, gone: map[string]bool{}, deleted: map[string]bool{},
		res: &Result{Scenario: p.Name, Nodes: p.Nodes, Seed: p.Seed, Steps: len(p.Steps), Notes: []string{}, Bad: []des.Broken{}, mutant: mutant},
	}
	o.run = r
	r.whole()
	r.res.Events, r.res.Virtual, r.res.Hash, r.res.Cut = r.Events(), r.Now(), r.Hash(), r.Stopped()
	r.res.Bad = append(r.res.Bad, r.Bad...)
	slices.SortStableFunc(r.res.Bad, func(a, b des.Broken) int { return int(a.At - b.At) })
	r.res.Metrics = o.metrics()
	r.res.Notes = append(r.res.Metrics.Words(nil), r.res.Notes...)
	if r.res.Cut {
		r.note("cut short after %v: nothing is said of what comes later", r.Now())
	}
	r.res.Recording = o.recording()
	return r.res
}

// run is one run of a scenario in the discrete-event tier.
type run struct {
	*des.Sim
	plan     *scenario.Plan
	observer *observer
	until    des.Invariant // a run ends when it breaks; "": at its end
	res      *Result
	names    map[string]string // of instances that steps name, to their IDs
	exposed  map[string]bool   // instances that nodes may run that lie
	gone     map[string]bool   // instances that somebody has tried to delete
	deleted  map[string]bool   // those of which a node has acknowledged it

	before  map[plan.Slot][]int // what ran where when the first fault came
	touched []int               // nodes that were not up all the while since
	smaller []int               // one side of the last split; nil: there is none
	peak    int                 // the most takeovers of one node in a minute that were told
	calm    time.Duration       // since when nothing was done
	graph   time.Duration       // when connections were last looked at
	picked  int                 // the node that the step is about; -1: none by number
}

func (r *run) note(format string, args ...any) {
	r.res.Notes = append(r.res.Notes, fmt.Sprintf(format, args...))
}

func (r *run) fail(of des.Invariant, format string, args ...any) {
	if len(r.res.Bad) < 100 {
		r.res.Bad = append(r.res.Bad, des.Broken{Of: of, At: r.Now(), What: fmt.Sprintf(format, args...)})
	}
}

// whole is the run from its beginning to its end.
func (r *run) whole() {
	w := r.plan.Workload
	r.Absent(r.plan.Newcomers...)
	r.Boot(des.Workload{
		Instances: w.Instances.Of(r.plan.Nodes), Replicas: w.Replicas, Partition: w.Partition, Voters: w.Voters,
		VCPU: w.VCPU, Memory: w.MemoryMiB << 20,
	})
	if w.Changes.Max > 0 {
		r.Do(w.After, func() { r.Changes(w.Changes.Max) })
	}
	for _, s := range r.plan.Steps {
		if r.pass(s.At - r.Now()); r.over() {
			return
		}
		if isFault(s.Do) && r.before == nil {
			r.before = r.Placement()
		}
		r.picked = -1
		if r.res.mutant != NothingDone {
			actions[s.Do](r, s, chance.Stream(s.Draw))
		}
		r.observer.step(s, r.picked)
		r.calm = r.Now()
	}
	if r.pass(r.plan.End - r.Now()); !r.over() {
		r.end()
	}
}

// pass lets d pass and looks every second at what is to be true meanwhile.
func (r *run) pass(d time.Duration) {
	for d > 0 && !r.over() {
		step := min(d, time.Second)
		r.Run(step)
		d -= step
		r.observer.sample()
		r.watch()
	}
}

// over says whether what the run is until has broken, or it was stopped.
func (r *run) over() bool {
	is := func(b des.Broken) bool { return b.Of == r.until }
	return r.Stopped() || r.until != "" && (slices.ContainsFunc(r.Bad, is) || slices.ContainsFunc(r.res.Bad, is))
}

// end calms the swarm, if it is to be, and holds it to what is expected then.
func (r *run) end() {
	r.Rest()
	if r.plan.Calm {
		r.Heal()
		for _, i := range r.Clogged() {
			r.Unclog(i)
		}
		r.Loss(r.plan.Network.Loss)
		for i := range r.Nodes() {
			r.Start(i)
		}
		r.smaller = nil
	}
	r.calm = r.Now()
	if r.settle(); !r.over() {
		r.judge()
	}
}

// settle waits until every replica runs once and all nodes agree.
func (r *run) settle() {
	limit := r.plan.Expect.Settle
	if limit == 0 {
		return
	}
	r.agree()
	took := r.Now() - r.calm
	ok := func() bool { return r.Converged() && len(r.UnservedBut(r.exposed)) == 0 }
	for !ok() && took < limit && !r.over() {
		r.pass(time.Second)
		took += time.Second
	}
	if r.Stopped() {
		return
	}
	r.CheckUnknown()
	if r.Converged() {
		r.CheckEqualViews()
		r.CheckAcknowledged()
	}
	if !ok() {
		r.fail(Settles, "not settled %v after the last step: all agree: %v, %v", took, r.Converged(), r.UnservedBut(r.exposed))
		return
	}
	r.note("settled %v after the last step", took)
}

// agree waits until all nodes do, and holds that to its limit.
func (r *run) agree() {
	limit := r.plan.Expect.Agree
	if limit == 0 {
		return
	}
	for !r.Converged() && r.Now()-r.calm < limit && !r.over() {
		r.pass(time.Second)
	}
	if r.Stopped() {
		return
	}
	if !r.Converged() {
		r.fail(Agrees, "not all nodes agree %v after the last step", limit)
		return
	}
	r.note("all agreed %v after the last step", r.Now()-r.calm)
}

// pick draws the node that a step is about; false: there is none.
func (r *run) pick(s scenario.Step, rng *rand.Rand) (int, bool) {
	i, ok := r.draw(s, rng)
	if ok {
		r.picked = i
	}
	return i, ok
}

func (r *run) draw(s scenario.Step, rng *rand.Rand) (int, bool) {
	if n, ok := s.Node.Number(); ok {
		return n, true
	}
	var from []int
	switch s.Node {
	case scenario.Up:
		from = r.Reachable()
	case scenario.Down:
		from = r.which(func(i int) bool { return !r.Up(i) && !r.Gone(i) && !r.Awaited(i) })
	case scenario.Clogged:
		from = r.Clogged()
	case scenario.Drained:
		from = r.which(r.Draining)
	case scenario.Honest, "":
		from = r.Honest()
	case scenario.Running:
		if rng.IntN(4) > 0 {
			from = r.serving()
		}
	case scenario.Serving:
		from = r.serving()
	}
	if s.Node == scenario.Any || s.Node == scenario.Running && len(from) == 0 {
		return rng.IntN(r.Nodes()), true
	}
	if len(from) == 0 {
		return 0, false
	}
	return from[rng.IntN(len(from))], true
}

func (r *run) which(is func(int) bool) (out []int) {
	for i := range r.Nodes() {
		if is(i) {
			out = append(out, i)
		}
	}
	return out
}

// serving are the honest nodes that run something, once for each replica.
func (r *run) serving() (on []int) {
	honest := r.Honest()
	for _, nodes := range r.Placement() { // any order: sorted below
		for _, i := range nodes {
			if slices.Contains(honest, i) {
				on = append(on, i)
			}
		}
	}
	slices.Sort(on)
	return on
}

// instance is the one that a step names, or one of its owner, drawn.
func (r *run) instance(s scenario.Step, rng *rand.Rand) (crdt.Spec, bool) {
	var mine []crdt.Spec
	for _, spec := range r.Instances(s.Owner) {
		if s.Name == "" || r.names[s.Name] == spec.ID {
			mine = append(mine, spec)
		}
	}
	if len(mine) == 0 {
		return crdt.Spec{}, false
	}
	return mine[rng.IntN(len(mine))], true
}
