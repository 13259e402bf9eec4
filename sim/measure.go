package sim

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
)

// measure is what an observer has counted.
type measure struct {
	took      []time.Duration // of each statement that all have
	overtaken int

	on         map[plan.Slot]int // where each replica ran last
	deaths     []*death          // of which something does not run again yet
	repairs    []time.Duration
	moves      int
	movedBytes uint64
}

// death is the end of a machine.
type death struct {
	node     int
	at, last time.Duration // last: when one of its replicas ran again
	lost     []plan.Slot   // that do not
}

// node notes when a machine may have gone down: what it ran ends at the same moment, or
// it was the daemon alone.
func (m *measure) node(at time.Duration, i int, is des.Condition) {
	m.deaths = slices.DeleteFunc(m.deaths, func(d *death) bool { return d.last == 0 && len(d.lost) == 0 })
	if is&(des.Up|des.Absent) == 0 {
		m.deaths = append(m.deaths, &death{node: i, at: at})
	}
}

func (m *measure) replica(at time.Duration, i int, r des.Replica) {
	if !r.Runs {
		for _, d := range m.deaths {
			if d.node == i && d.at == at {
				d.lost = append(d.lost, r.Slot)
			}
		}
		return
	}
	if before, ran := m.on[r.Slot]; ran && before != i {
		m.moves++
		m.movedBytes += r.Fetched
	}
	m.on[r.Slot] = i
	for _, d := range m.deaths {
		if k := slices.Index(d.lost, r.Slot); k >= 0 {
			d.lost = slices.Delete(d.lost, k, k+1)
			if d.last = at; len(d.lost) == 0 {
				m.repairs = append(m.repairs, at-d.at)
			}
		}
	}
	m.deaths = slices.DeleteFunc(m.deaths, func(d *death) bool { return d.last != 0 && len(d.lost) == 0 })
}

func (m *measure) spread(s des.Spread) {
	if s.Open {
		m.overtaken++
		return
	}
	m.took = append(m.took, s.All)
}

// metrics are the figures of a run so far.
func (o *observer) metrics() record.Metrics {
	r := o.run
	out := record.Metrics{
		Convergence: quantiles(o.took), Overtaken: o.overtaken, Open: len(r.Spreading()),
		Moves: o.moves, MovedBytes: o.movedBytes, FalseDeaths: r.FalseDeaths(),
	}
	out.Takeovers, out.WrongTakeovers = r.Takeovers()
	out.Repair, out.Unrepaired = o.repaired()
	total := r.Traffic()
	span := float64(r.Nodes()) * max(r.Now().Seconds(), 1)
	for c, t := range total {
		out.Traffic = append(out.Traffic, record.Rate{Class: des.Class(c).String(), Messages: round(float64(t.Messages) / span), Bytes: round(float64(t.Bytes) / span)})
	}
	sent := float64(total[des.Gossip].Messages)
	if n := len(o.took) + out.Overtaken + out.Open; n > 0 {
		out.Sends = round(sent / float64(n*r.Nodes()))
	}
	if first := float64(r.Firsts()); first > 0 {
		out.Duplicates = round(max(0, sent-first) / first)
	}
	return out
}

// repaired says how long repairs took, and how many deaths something is lost of that
// is still wanted.
func (o *observer) repaired() (record.Quantiles, int) {
	took, open := slices.Clone(o.repairs), 0
	wanted := map[plan.Slot]bool{}
	for owner := range o.run.Owners() {
		for _, s := range o.run.Instances(owner) {
			for slot := range s.Replicas {
				wanted[plan.Slot{Instance: s.ID, Slot: slot}] = true
			}
		}
	}
	for _, d := range o.deaths {
		switch {
		case slices.ContainsFunc(d.lost, func(s plan.Slot) bool { return wanted[s] }):
			open++
		case d.last != 0:
			took = append(took, d.last-d.at)
		}
	}
	return quantiles(took), open
}

// quantiles are those of spans of time, by nearest rank.
func quantiles(spans []time.Duration) record.Quantiles {
	if len(spans) == 0 {
		return record.Quantiles{}
	}
	spans = slices.Sorted(slices.Values(spans))
	rank := func(q float64) record.Micros { return micros(spans[int(math.Ceil(q*float64(len(spans))))-1]) }
	return record.Quantiles{Count: len(spans), P50: rank(0.5), P99: rank(0.99), Most: rank(1)}
}

// round is x to three places, as people read it.
func round(x float64) float64 { return math.Round(x*1000) / 1000 }

// notes are the figures in words.
func notes(m record.Metrics) []string {
	spans := func(q record.Quantiles) string {
		if q.Count == 0 {
			return "none"
		}
		d := func(t record.Micros) time.Duration {
			return (time.Duration(t) * time.Microsecond).Round(time.Millisecond)
		}
		return fmt.Sprintf("p50 %v, p99 %v, at most %v, of %d", d(q.P50), d(q.P99), d(q.Most), q.Count)
	}
	out := []string{
		"statements with all nodes: " + spans(m.Convergence) + fmt.Sprintf("; %d overtaken, %d on their way at the end", m.Overtaken, m.Open),
		fmt.Sprintf("%.2f messages sent by a node for each statement, %.2f that say nothing new for each that does", m.Sends, m.Duplicates),
		"repair after a machine's end: " + spans(m.Repair) + fmt.Sprintf("; %d not repaired", m.Unrepaired),
		fmt.Sprintf("%d replicas moved, %.1f MiB fetched for them", m.Moves, float64(m.MovedBytes)/(1<<20)),
	}
	for _, t := range m.Traffic {
		if t.Messages > 0 {
			out = append(out, fmt.Sprintf("%s: %.2f messages and %.0f bytes by a node and second", t.Class, t.Messages, t.Bytes))
		}
	}
	return out
}
