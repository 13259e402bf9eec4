package scenario

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/formthefog/formation/sim/chance"
)

// Plan is a scenario with everything that a seed decides beforehand.
type Plan struct {
	*Scenario
	Nodes int
	Seed  uint64
	// Liars are the nodes that lie once told to, and Newcomers those that are not
	// there at first, by number, in order.
	Liars, Newcomers []int
	Steps            []Step
	// End is when the last step has been, at the earliest.
	End time.Duration
}

// Words of chance, beside those of a tier.
const (
	useStep = 0x7374 + iota
	useLiars
	useNewcomers
)

// Expand draws the plan of a seed. Zero nodes are as many as the scenario wants.
func (s *Scenario) Expand(nodes int, seed uint64) (*Plan, error) {
	if nodes == 0 {
		nodes = s.Nodes
	}
	if nodes < MinNodes || nodes > MaxNodes {
		return nil, fmt.Errorf("%d nodes, allowed are %d to %d", nodes, MinNodes, MaxNodes)
	}
	p := &Plan{Scenario: s, Nodes: nodes, Seed: seed, Liars: some(s.Liars, nodes, seed, useLiars), Newcomers: some(s.Newcomers, nodes, seed, useNewcomers)}
	p.End = chance.Between(s.Until.Min, s.Until.Max, chance.Stream(seed, useStep))
	var at time.Duration
	for i := range s.Schedule {
		at = p.enter(i, at)
		if len(p.Steps) > maxSteps {
			return nil, fmt.Errorf("scenario %s: more than %d steps", s.Name, maxSteps)
		}
	}
	slices.SortStableFunc(p.Steps, func(a, b Step) int { return cmp.Compare(a.At, b.At) })
	for i := range p.Steps {
		p.Steps[i].N = i
	}
	if n := len(p.Steps); n > 0 {
		p.End = max(p.End, p.Steps[n-1].At)
	}
	return p, nil
}

// some draws a share of the nodes.
func some(share float64, nodes int, seed, use uint64) []int {
	out := chance.Stream(seed, use).Perm(nodes)[:int(share*float64(nodes))]
	slices.Sort(out)
	return out
}

// enter adds the steps of the i-th entry, the one before having been at last, and
// says when its own last is.
func (p *Plan) enter(i int, last time.Duration) time.Duration {
	e := &p.Schedule[i]
	rng := chance.Stream(p.Seed, useStep, uint64(i))
	at := last + span(e.Then, rng)
	if e.At != (Span{}) {
		at = span(e.At, rng)
	}
	if e.Lifetimes != (Span{}) {
		p.churn(i, at)
		return at
	}
	times := e.Repeat.Of(p.Nodes)
	if e.Repeat == (Count{}) {
		times = 1
	}
	for k := range min(times, maxSteps+1) {
		if len(p.Steps) > maxSteps {
			break
		}
		rng := chance.Stream(p.Seed, useStep, uint64(i), uint64(k)+1)
		if k > 0 {
			at += span(e.Every, rng)
		}
		switch {
		case len(e.Choose) > 0:
			p.add(at, choose(e.Choose, rng), rng)
		case len(e.Each) > 0:
			for _, a := range e.Each {
				p.add(at, a, rng)
			}
		default:
			p.add(at, e.Action, rng)
		}
	}
	return at
}

func (p *Plan) add(at time.Duration, a Action, rng *rand.Rand) {
	if a.Node == Each {
		for _, n := range rng.Perm(p.Nodes) {
			one := a
			one.Node = Pick(strconv.Itoa(n))
			p.Steps = append(p.Steps, Step{At: at, Action: one, For: span(a.For, rng), By: span(a.By, rng), Draw: rng.Uint64()})
		}
		return
	}
	p.Steps = append(p.Steps, Step{At: at, Action: a, For: span(a.For, rng), By: span(a.By, rng), Draw: rng.Uint64()})
}

func choose(from []Choice, rng *rand.Rand) Action {
	total := 0
	for _, c := range from {
		total += max(1, c.Weight)
	}
	n := rng.IntN(total)
	for _, c := range from {
		if n -= max(1, c.Weight); n < 0 {
			return c.Action
		}
	}
	panic("unreachable: n is below the total")
}

func span(s Span, rng *rand.Rand) time.Duration { return chance.Between(s.Min, s.Max, rng) }

// Only is the plan with these of its steps, by number, and no others.
func (p *Plan) Only(keep []int) *Plan {
	out := *p
	out.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool { return !slices.Contains(keep, s.N) })
	return &out
}

// Until is the plan with its first d alone. What a run must have seen is about the
// whole, and is not asked of a part.
func (p *Plan) Until(d time.Duration) *Plan {
	if d >= p.End {
		return p
	}
	out, part := *p, *p.Scenario
	part.Sometimes = nil
	out.Scenario = &part
	out.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool { return s.At > d })
	out.End = d
	return &out
}
