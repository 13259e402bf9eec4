package scenario

import (
	"math"
	"strconv"
	"time"

	"github.com/formthefog/formation/sim/chance"
)

// ages is the share of machines of a real fleet that have been up for so many days or
// longer (ThreeFold grid, 2,761 nodes, published in its forum, thread 3291).
var ages = []struct{ days, share float64 }{{0, 1}, {7, 0.88}, {90, 0.44}, {365, 0.05}}

// Between the published points the share falls by a rate of its own; the last goes on.
func rate(i int) float64 {
	i = min(i, len(ages)-2)
	return math.Log(ages[i].share/ages[i+1].share) / (ages[i+1].days - ages[i].days)
}

// age is for how many days a machine has been up that is drawn, u being from (0, 1].
// It is for how long it will stay up as well: in a fleet in balance both are equally
// distributed (renewal theory).
func age(u float64) float64 {
	i := 0
	for i < len(ages)-2 && u < ages[i+1].share {
		i++
	}
	return ages[i].days + math.Log(ages[i].share/u)/rate(i)
}

// lifetime is for how many days a machine stays up that has just come up: in a fleet
// in balance the share that lives longer is proportional to how steeply that of ages
// falls.
func lifetime(u float64) float64 {
	steep := func(i int, days float64) float64 {
		return rate(i) * ages[i].share * math.Exp(-rate(i)*(days-ages[i].days))
	}
	want := u * steep(0, 0)
	for i := range ages[:len(ages)-1] {
		last := i == len(ages)-2
		switch {
		case steep(i, ages[i].days) <= want:
			return ages[i].days // it falls by a step there
		case last || steep(i, ages[i+1].days) < want:
			return ages[i].days + math.Log(steep(i, ages[i].days)/want)/rate(i)
		}
	}
	panic("unreachable: the last rate goes on")
}

// churn adds the steps of an entry with lifetimes.
func (p *Plan) churn(i int, from time.Duration) {
	e := &p.Schedule[i]
	day := float64(e.Lifetimes.Min) / 7
	for n := range p.Nodes {
		rng := chance.Stream(p.Seed, useStep, uint64(i), uint64(n)+1)
		at := from + time.Duration(day*age(1-rng.Float64()))
		for at < p.End && len(p.Steps) <= maxSteps {
			a := e.Action
			a.Node = Pick(strconv.Itoa(n))
			down := span(a.For, rng)
			p.Steps = append(p.Steps, Step{At: at, Action: a, For: down, By: span(a.By, rng), Draw: rng.Uint64()})
			at += down + time.Duration(day*lifetime(1-rng.Float64()))
		}
	}
}
