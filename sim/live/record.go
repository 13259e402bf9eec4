package live

import (
	"fmt"
	"strconv"
	"time"

	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/regions"
)

// unknown is what of a run this tier does not know.
var unknown = []string{record.OfEvents, record.OfSends, record.OfReplicas, record.OfFetches, record.OfDeaths}

// classes of traffic: nobody looks into packets.
var classes = []string{"packets"}

// micros is a time of the run's.
func (r *run) micros() record.Micros { return record.In(r.Now() - r.zero) }

// observe records what is other than at the look before.
func (r *run) observe() {
	at := r.micros()
	for i, n := range r.nodes {
		r.rec.Node(at, i, r.states(n)...)
	}
	r.rec.Reach(at, r.net.reach())
	r.rec.Traffic(at, r.sent(), len(r.spread))
}

// states of a node, as a recording has them.
func (r *run) states(n *node) (is []string) {
	switch {
	case n.up:
		is = []string{record.Up}
	case r.gone[n.i]:
		is = []string{record.Gone}
	case r.awaited(n.i):
		is = []string{record.Absent}
	default:
		is = []string{record.Down}
	}
	if r.net.clogs(n.i) {
		is = append(is, record.Clogged)
	}
	return is
}

func (r *run) sent() []record.Sent {
	t := r.Traffic()
	return []record.Sent{{Messages: t.Packets, Bytes: t.Bytes}}
}

func (n *network) clogs(i int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.clogged[i]
}

// reach is who reaches whom.
func (n *network) reach() record.Net {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := record.Net{Loss: n.cfg.Loss}
	for i, side := range n.side {
		for len(out.Sides) < side {
			out.Sides = append(out.Sides, []int{})
		}
		if side > 0 {
			out.Sides[side-1] = append(out.Sides[side-1], i)
		}
	}
	for l := range n.cut { // any order: the recorder sorts them
		out.Cuts = append(out.Cuts, [2]int{l.from, l.to})
	}
	return out
}

// spreading is a change on its way to all.
type spreading struct {
	instance string
	restart  uint64
	by       int
	at       time.Duration
	to       map[int]int // who was up then and lacks it, and which of its lives that was
	have     int         // of those that were up
	record.Statement
}

// spreads notes a change that a node has just acknowledged.
func (r *run) spreads(by int, instance string, restart uint64) {
	c := &spreading{instance: instance, restart: restart, by: by, at: r.Now(), to: map[int]int{}}
	c.Statement = record.Statement{Kind: "spec", By: by, Made: r.micros()}
	for _, i := range r.Up() {
		c.to[i] = r.nodes[i].lives
	}
	r.spread = append(r.spread, c)
}

// spreadTo says whether all have a change that were up when it was made and still are;
// who has a later one has it.
func (r *run) spreadTo(c *spreading) bool {
	for i, life := range c.to { // any order: each is by itself
		n := r.nodes[i]
		if !n.up || n.lives != life {
			delete(c.to, i)
		} else if s, has := n.state.View().Instance(c.instance); has && s.Restart >= c.restart {
			delete(c.to, i)
			c.have++
		}
	}
	if c.have == 0 {
		return false
	}
	took := record.In(r.Now() - c.at)
	reached := func(when *record.Micros, percent int) {
		if *when == 0 && 100*c.have >= percent*(c.have+len(c.to)) {
			*when = took
		}
	}
	reached(&c.Half, 50)
	reached(&c.Most, 99)
	reached(&c.All, 100)
	return c.All > 0
}

// metrics are the figures of the run so far.
func (r *run) metrics() record.Metrics {
	return r.rec.Metrics(r.micros(), r.Nodes(), classes, r.sent(), len(r.spread), func(record.Slot) bool { return false })
}

// recording is the whole of it, at the end of the run.
func (r *run) recording() *record.Recording {
	res := r.res
	h := record.Header{
		Scenario: res.Scenario, About: r.plan.About, Tier: Tier, Seed: strconv.FormatUint(res.Seed, 10), Nodes: res.Nodes, Steps: res.Steps,
		Replay: fmt.Sprintf("form sim run %s --tier %s --nodes %d --seed %d", res.Scenario, Tier, res.Nodes, res.Seed), Classes: classes, Unknown: unknown,
	}
	if r.plan.Network.Regions {
		h.Regions = record.World()
		h.At = regions.Places(r.plan.Nodes, r.plan.Seed)
	}
	for _, c := range r.spread {
		r.rec.Add(record.Line{At: r.micros(), Statement: &c.Statement})
	}
	for _, b := range res.Bad {
		r.rec.Add(record.Line{At: record.In(b.At), Broken: &record.Broken{Of: string(b.Of), What: b.What}})
	}
	return r.rec.End(h, r.micros(), record.End{Cut: res.Cut, Metrics: res.Metrics})
}
