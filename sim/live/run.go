package live

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

// run is one run of a scenario over real hosts.
type run struct {
	*Swarm
	ctx    context.Context // its end cuts the run short
	plan   *scenario.Plan
	res    *Result
	rng    *rand.Rand
	picked int           // the node that the step is about; -1: none by number
	zero   time.Duration // when the schedule began
	gone   map[int]bool  // for good
	names  []string      // of instances, by number
	due    []deed
	next   time.Duration // when an owner next changes something
	spread []*spreading
	rec    record.Looker
}

// deed is something to be done at a time of the swarm's.
type deed struct {
	at time.Duration
	do func() error
}

// resolution is how often the swarm is looked at.
const resolution = 50 * time.Millisecond

// meeting is how long nodes have to meet before a schedule begins.
const meeting = 2 * time.Minute

func (r *run) note(format string, args ...any) {
	r.res.Notes = append(r.res.Notes, fmt.Sprintf(format, args...))
}

func (r *run) fail(of des.Invariant, format string, args ...any) {
	r.res.Bad = append(r.res.Bad, des.Broken{Of: of, At: r.Now() - r.zero, What: fmt.Sprintf(format, args...)})
}

// whole is the run from its beginning to its end. Its error is of something that
// could not be done.
func (r *run) whole() error {
	if err := r.begin(); err != nil {
		return err
	}
	for _, s := range r.plan.Steps {
		if err := r.pass(r.zero + s.At - r.Now()); err != nil {
			return err
		}
		r.picked = -1
		if err := steps[s.Do](r, s, chance.Stream(s.Draw)); err != nil {
			return fmt.Errorf("step %v: %w", s, err)
		}
		r.rec.Add(record.Line{At: r.micros(), Step: &record.Step{N: s.N, Text: s.String(), Node: r.picked}})
		r.observe()
	}
	if err := r.pass(r.zero + r.plan.End - r.Now()); err != nil {
		return err
	}
	if r.plan.Calm {
		if err := r.calm(); err != nil {
			return err
		}
	}
	r.next = 0
	if err := r.settle(); err != nil {
		return err
	}
	r.judge()
	return nil
}

// begin has those who are there meet, and owners ship what there is at first.
func (r *run) begin() error {
	first := slices.DeleteFunc(r.all(), func(i int) bool { return r.awaited(i) })
	for _, i := range first {
		if err := r.Start(0, i); err != nil {
			return err
		}
		if err := r.pass(100 * time.Millisecond); err != nil {
			return err
		}
	}
	if err := r.meet(); err != nil {
		return err
	}
	w := r.plan.Workload
	for k := range w.Instances.Of(r.plan.Nodes) {
		if err := r.ship(first[k%len(first)], fmt.Sprint("app-", k), w.Replicas); err != nil {
			return err
		}
	}
	if err := r.meet(); err != nil {
		return err
	}
	r.zero, r.spread, r.rec = r.Now(), nil, record.Looker{} // what was until then is not the scenario's
	r.rec.Begin(r.sent())
	r.observe()
	r.lossy(r.plan.Network.Loss)
	if w.Changes.Max > 0 {
		r.next = r.zero + w.After + r.wait()
	}
	return nil
}

func (r *run) meet() error {
	for limit := r.Now() + meeting; !r.Converged(); {
		if r.Now() >= limit {
			return fmt.Errorf("the nodes do not agree after %v in which nothing happened", meeting)
		}
		if err := r.pass(time.Second); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) awaited(i int) bool {
	return slices.Contains(r.plan.Newcomers, i) && r.nodes[i].lives == 0
}

// lossy sets what is lost by the way; what arrives damaged is lost as well, for
// QUIC notices.
func (r *run) lossy(share float64) {
	r.Lossy(min(1, share+r.plan.Network.Damage), r.plan.Network.Duplicate)
}

// wait is how long until an owner changes something.
func (r *run) wait() time.Duration {
	return time.Duration(r.rng.ExpFloat64() * float64(r.plan.Workload.Changes.Max))
}

// after has something done in so long.
func (r *run) after(d time.Duration, do func() error) {
	r.due = append(r.due, deed{r.Now() + d, do})
}

// later starts a node in so long.
func (r *run) later(d time.Duration, i int) { r.after(d, func() error { return r.start(i) }) }

func (r *run) start(i int) error {
	if r.gone[i] {
		return nil
	}
	return r.Start(0, i)
}

// pass lets d pass, and does what is due meanwhile.
func (r *run) pass(d time.Duration) error {
	for end := r.Now() + d; r.Now() < end; {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		r.Run(min(resolution, end-r.Now()))
		r.look()
		ready := slices.DeleteFunc(slices.Clone(r.due), func(e deed) bool { return e.at > r.Now() })
		r.due = slices.DeleteFunc(r.due, func(e deed) bool { return e.at <= r.Now() })
		for _, e := range ready {
			if err := e.do(); err != nil {
				return err
			}
		}
		if r.next > 0 && r.Now() >= r.next {
			r.next = r.Now() + r.wait()
			if err := r.change(scenario.Step{}, r.rng); err != nil {
				return err
			}
		}
	}
	return nil
}

// look notes which changes have come to all, and what else is other than before.
func (r *run) look() {
	r.spread = slices.DeleteFunc(r.spread, func(c *spreading) bool {
		done := r.spreadTo(c)
		if done {
			r.rec.Spread(r.micros(), c.Statement, false)
		}
		return done
	})
	r.observe()
}

// calm ends all faults, and starts who is down.
func (r *run) calm() error {
	r.Heal()
	for _, i := range r.Clogged() {
		r.Unclog(i)
	}
	r.lossy(r.plan.Network.Loss)
	for i := range r.Nodes() {
		if err := r.start(i); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until all agree.
func (r *run) settle() error {
	limit := r.plan.Expect.Settle
	if limit == 0 {
		return nil
	}
	began := r.Now()
	for agreed := false; !agreed && r.Now()-began < limit; agreed = r.Converged() {
		if err := r.pass(time.Second); err != nil { // who was just started has things to say
			return err
		}
	}
	if !r.Converged() {
		r.fail(settles, "not all agree %v after the last step", limit)
		return nil
	}
	r.note("all agree %v after the last step", r.Now()-began)
	for _, err := range []error{r.UnequalViews(), r.Unacknowledged()} {
		if err != nil {
			r.fail(settles, "%v", err)
		}
	}
	return nil
}

// judge holds the run to what its scenario expects of state and network.
func (r *run) judge() {
	e := r.plan.Expect
	if c := r.metrics().Convergence; e.Delivery > 0 && c.Count == 0 {
		r.fail(delivers, "no statement came to all nodes: nothing was measured")
	} else if e.Delivery > 0 && c.P99.Duration() > e.Delivery+resolution {
		r.fail(delivers, "all nodes have a statement within %v (p99), expected are %v", c.P99.Duration(), e.Delivery)
	}
	for _, w := range r.plan.Sometimes {
		if r.Seen[w] == 0 {
			r.fail(sometimes, "never: %s", w)
		}
	}
	t := r.Traffic()
	r.note("%d packets, %d MB, %d packets lost", t.Packets, t.Bytes>>20, t.Lost)
	if Ignores(e) {
		r.note("not looked at in tier %s: what is expected of replicas, of the taking for dead, and of sends", Tier)
	}
}

// at picks the node that a step is about; a step that finds none does nothing.
func at(do func(r *run, i int, s scenario.Step, rng *rand.Rand) error) func(*run, scenario.Step, *rand.Rand) error {
	return func(r *run, s scenario.Step, rng *rand.Rand) error {
		from := r.Up()
		switch s.Node {
		case scenario.Any:
			from = r.all()
		case scenario.Down:
			from = slices.DeleteFunc(r.all(), func(i int) bool { return r.nodes[i].up || r.gone[i] || r.awaited(i) })
		case scenario.Clogged:
			from = r.Clogged()
		}
		if n, ok := s.Node.Number(); ok {
			from = []int{n}
		}
		if len(from) == 0 {
			return nil
		}
		r.picked = from[rng.IntN(len(from))]
		return do(r, r.picked, s, rng)
	}
}

// split cuts those nodes off from the others.
func (r *run) split(away []int) {
	r.Partition(slices.DeleteFunc(r.all(), func(i int) bool { return slices.Contains(away, i) }), away)
}

func (r *run) cut(i int, s scenario.Step, rng *rand.Rand) error {
	for o := range r.Nodes() {
		if o != i && rng.Float64() < cmp.Or(s.Share, 0.5) {
			r.Cut(i, o)
		}
	}
	return nil
}

func (r *run) join(s scenario.Step, rng *rand.Rand) error {
	waiting := slices.DeleteFunc(r.all(), func(i int) bool { return !r.awaited(i) })
	n := len(waiting)
	if s.Share > 0 {
		n = min(n, max(1, int(s.Share*float64(r.Nodes()))))
	}
	for _, k := range rng.Perm(len(waiting))[:n] {
		if err := r.Start(0, waiting[k]); err != nil {
			return err
		}
		r.Seen["join"]++
	}
	return nil
}

// ship brings an instance to a node, if that is up.
func (r *run) ship(i int, name string, replicas int) error {
	if !r.nodes[i].up {
		return nil
	}
	n := len(r.names)
	id, err := r.Ship(i, crdt.Spec{
		Name: cmp.Or(name, fmt.Sprint("new-", n)), Pack: des.PackName(n + 1), Replicas: max(1, replicas), Phase: crdt.PhaseRunning,
	})
	if err != nil {
		return err
	}
	r.names = append(r.names, id)
	r.spreads(i, id, 0)
	return nil
}

// change has the owner restart an instance, drawn, at a node that is up, drawn, if
// that knows it.
func (r *run) change(_ scenario.Step, rng *rand.Rand) error {
	up := r.Up()
	if len(up) == 0 || len(r.names) == 0 {
		return nil
	}
	i, id := up[rng.IntN(len(up))], r.names[rng.IntN(len(r.names))]
	if _, known := r.nodes[i].state.View().Instance(id); !known {
		return nil
	}
	var restart uint64
	if err := r.Set(i, id, func(s *crdt.Spec) { s.Restart++; restart = s.Restart }); err != nil {
		return err
	}
	r.spreads(i, id, restart)
	r.Seen["an owner changed something"]++
	return nil
}
