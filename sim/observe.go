package sim

import (
	"slices"
	"strconv"
	"time"

	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

// observer looks on at a run: it records what happens and measures.
type observer struct {
	record.Looker
	run   *run
	names map[string]string // of instances, by ID
}

func newObserver() *observer { return &observer{names: map[string]string{}} }

// Node records in which states a node is.
func (o *observer) Node(at time.Duration, i int, is des.Condition) {
	o.Looker.Node(record.In(at), i, states(is)...)
}

func states(is des.Condition) []string {
	out := []string{}
	for _, s := range []struct {
		name  string
		holds bool
	}{
		{record.Up, is&des.Up != 0}, {record.Down, is&(des.Up|des.Absent|des.Gone) == 0}, {record.Asleep, is&des.Asleep != 0},
		{record.Stalled, is&des.Stalled != 0}, {record.Absent, is&des.Absent != 0}, {record.Gone, is&des.Gone != 0},
		{record.Draining, is&des.Drains != 0}, {record.Lying, is&des.Lies != 0}, {record.Clogged, is&des.ClogHolds != 0},
	} {
		if s.holds {
			out = append(out, s.name)
		}
	}
	return out
}

// Network records who reaches whom.
func (o *observer) Network(at time.Duration, net des.Reach) {
	n := &record.Net{Loss: net.Loss}
	for i, side := range net.Side {
		for len(n.Sides) < int(side) {
			n.Sides = append(n.Sides, []int{})
		}
		if side > 0 {
			n.Sides[side-1] = append(n.Sides[side-1], i)
		}
	}
	for _, c := range net.Cut {
		n.Cuts = append(n.Cuts, [2]int{int(c[0]), int(c[1])})
	}
	o.Reach(record.In(at), *n)
}

// Replica records one that starts or stops to run.
func (o *observer) Replica(at time.Duration, i int, r des.Replica) {
	o.Looker.Replica(record.In(at), record.Replica{
		Instance: r.Slot.Instance, Name: o.name(r.Slot.Instance), Slot: r.Slot.Slot, Node: i, Runs: r.Runs,
	}, r.Fetched)
}

// name is what an owner calls an instance.
func (o *observer) name(id string) string {
	if name, ok := o.names[id]; ok {
		return name
	}
	for owner := range o.run.Owners() {
		for _, s := range o.run.Instances(owner) {
			o.names[s.ID] = s.Name
		}
	}
	if _, ok := o.names[id]; !ok {
		o.names[id] = "" // it is deleted
	}
	return o.names[id]
}

// Spread records how a statement came to all.
func (o *observer) Spread(at time.Duration, s des.Spread) {
	o.Looker.Spread(record.In(at), statement(s), s.Open)
}

func statement(s des.Spread) record.Statement {
	return record.Statement{Kind: string(s.Kind), By: s.By, Made: record.In(s.Made), Half: record.In(s.Half), Most: record.In(s.Most), All: record.In(s.All)}
}

// step records a step that was done just now.
func (o *observer) step(s scenario.Step, to int) {
	o.Add(record.Line{At: record.In(o.run.Now()), Step: &record.Step{N: s.N, Text: s.String(), Node: to}})
}

// sample records what was sent since the sample before, if that is a while ago.
func (o *observer) sample() {
	o.Looker.Traffic(record.In(o.run.Now()), o.sent(), len(o.run.Spreading()))
}

// sent is what all nodes have sent, of each class.
func (o *observer) sent() (out []record.Sent) {
	for _, t := range o.run.Traffic() {
		out = append(out, record.Sent{Messages: t.Messages, Bytes: t.Bytes})
	}
	return out
}

// classes are the names of those that sent has.
func classes() (out []string) {
	for c := range des.Classes {
		out = append(out, c.String())
	}
	return out
}

// recording is the whole of it, at the end of the run.
func (o *observer) recording() *record.Recording {
	r, res := o.run, o.run.res
	h := record.Header{
		Scenario: res.Scenario, About: r.plan.About, Tier: "des", Seed: strconv.FormatUint(res.Seed, 10), Nodes: res.Nodes,
		Steps: res.Steps, Replay: res.Replay(), Classes: classes(),
	}
	if r.plan.Network.Regions {
		h.Regions = record.World()
		for i := range res.Nodes {
			h.At = append(h.At, slices.IndexFunc(h.Regions, func(g record.Region) bool { return g.Name == r.Region(i) }))
		}
	}
	for _, s := range r.Spreading() {
		open := statement(s)
		o.Add(record.Line{At: record.In(r.Now()), Statement: &open})
	}
	for _, b := range res.Bad {
		o.Add(record.Line{At: record.In(b.At), Broken: &record.Broken{Of: string(b.Of), What: b.What}})
	}
	return o.End(h, record.In(r.Now()), record.End{Hash: res.Hash, Events: res.Events, Cut: res.Cut, Metrics: res.Metrics})
}
