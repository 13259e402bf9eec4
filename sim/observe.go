package sim

import (
	"strconv"
	"time"

	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/regions"
	"github.com/formthefog/formation/sim/scenario"
)

// observer looks on at a run: it records what happens and measures.
type observer struct {
	run   *run
	rec   record.Recorder
	names map[string]string // of instances, by ID
	measure

	sampled time.Duration            // when traffic last was
	before  [des.Classes]des.Traffic // what had been sent then
	ended   int                      // statements that are over since
	slowest time.Duration            // of those
}

func micros(d time.Duration) record.Micros { return record.Micros(d.Microseconds()) }

func newObserver() *observer {
	return &observer{names: map[string]string{}, measure: measure{on: map[plan.Slot]int{}}}
}

func (o *observer) add(at time.Duration, l record.Line) {
	l.At = micros(at)
	o.rec.Add(l)
}

// Node records in which states a node is.
func (o *observer) Node(at time.Duration, i int, is des.Condition) {
	o.measure.node(at, i, is)
	o.add(at, record.Line{Node: &record.Node{N: i, Is: states(is)}})
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
	o.add(at, record.Line{Net: n})
}

// Replica records one that starts or stops to run.
func (o *observer) Replica(at time.Duration, i int, r des.Replica) {
	o.measure.replica(at, i, r)
	o.add(at, record.Line{Replica: &record.Replica{
		Instance: r.Slot.Instance, Name: o.name(r.Slot.Instance), Slot: r.Slot.Slot, Node: i, Runs: r.Runs,
	}})
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
	o.measure.spread(s)
	o.ended++
	o.slowest = max(o.slowest, s.All)
	o.add(at, record.Line{Statement: statement(s)})
}

func statement(s des.Spread) *record.Statement {
	return &record.Statement{Kind: string(s.Kind), By: s.By, Made: micros(s.Made), Half: micros(s.Half), Most: micros(s.Most), All: micros(s.All)}
}

// step records a step that was done just now.
func (o *observer) step(s scenario.Step, to int) {
	o.add(o.run.Now(), record.Line{Step: &record.Step{N: s.N, Text: s.String(), Node: to}})
}

// sample records what was sent since the sample before, if that is a while ago.
func (o *observer) sample() {
	now := o.run.Now()
	if now-o.sampled < time.Second {
		return
	}
	total := o.run.Traffic()
	t := &record.Traffic{Done: o.ended, Slowest: micros(o.slowest), Open: len(o.run.Spreading())}
	for c, is := range total {
		t.Messages = append(t.Messages, is.Messages-o.before[c].Messages)
		t.Bytes = append(t.Bytes, is.Bytes-o.before[c].Bytes)
	}
	o.add(now, record.Line{Traffic: t})
	o.sampled, o.before, o.ended, o.slowest = now, total, 0, 0
}

// recording is the whole of it, at the end of the run.
func (o *observer) recording() *record.Recording {
	r, res := o.run, o.run.res
	h := record.Header{
		Scenario: res.Scenario, About: r.plan.About, Tier: "des", Seed: strconv.FormatUint(res.Seed, 10), Nodes: res.Nodes,
		Steps: res.Steps, Replay: res.Replay(),
	}
	for c := range des.Classes {
		h.Classes = append(h.Classes, c.String())
	}
	if r.plan.Network.Regions {
		where := map[string]int{}
		for i := range regions.Count {
			g := regions.Of(i)
			where[g.Name] = i
			h.Regions = append(h.Regions, record.Region{Name: g.Name, Lat: g.Lat, Lon: g.Lon})
		}
		for i := range res.Nodes {
			h.At = append(h.At, where[r.Region(i)])
		}
	}
	for _, s := range r.Spreading() {
		o.add(r.Now(), record.Line{Statement: statement(s)})
	}
	for _, b := range res.Bad {
		o.add(b.At, record.Line{Broken: &record.Broken{Of: string(b.Of), What: b.What}})
	}
	return o.rec.End(h, micros(r.Now()), record.End{Hash: res.Hash, Events: res.Events, Cut: res.Cut, Metrics: res.Metrics})
}
