package record

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// measure is what a Looker has counted.
type measure struct {
	took      []Micros // of each statement that all have
	overtaken int

	on         map[Slot]int // where each replica ran last
	deaths     []*death     // of which something does not run again yet
	repairs    []Micros
	moves      int
	movedBytes uint64
}

// death is the end of a machine.
type death struct {
	node     int
	at, last Micros // last: when one of its replicas ran again
	lost     []Slot // that do not
}

func (s Slot) compare(o Slot) int {
	return cmp.Or(cmp.Compare(s.Instance, o.Instance), cmp.Compare(s.Slot, o.Slot))
}

// ends notes when a machine may have gone down: what it ran ends at the same moment, or
// it was the daemon alone.
func (m *measure) ends(at Micros, n int, is []string) {
	m.deaths = slices.DeleteFunc(m.deaths, func(d *death) bool { return d.last == 0 && len(d.lost) == 0 })
	if !slices.Contains(is, Up) && !slices.Contains(is, Absent) {
		m.deaths = append(m.deaths, &death{node: n, at: at})
	}
}

func (m *measure) replica(at Micros, slot Slot, r Replica, fetched uint64) {
	if !r.Runs {
		for _, d := range m.deaths {
			if d.node == r.Node && d.at == at {
				d.lost = append(d.lost, slot)
			}
		}
		return
	}
	if before, ran := m.on[slot]; ran && before != r.Node {
		m.moves++
		m.movedBytes += fetched
	}
	if m.on == nil {
		m.on = map[Slot]int{}
	}
	m.on[slot] = r.Node
	for _, d := range m.deaths {
		if k := slices.Index(d.lost, slot); k >= 0 {
			d.lost = slices.Delete(d.lost, k, k+1)
			if d.last = at; len(d.lost) == 0 {
				m.repairs = append(m.repairs, at-d.at)
			}
		}
	}
	m.deaths = slices.DeleteFunc(m.deaths, func(d *death) bool { return d.last != 0 && len(d.lost) == 0 })
}

// Metrics are the figures so far that come of what it was told: all but sends,
// duplicates, takeovers and false deaths. Wanted says whether a replica is to run: one
// that is not need not be repaired.
func (l *Looker) Metrics(at Micros, nodes int, classes []string, total []Sent, open int, wanted func(Slot) bool) Metrics {
	out := Metrics{Convergence: quantiles(l.took), Overtaken: l.overtaken, Open: open, Moves: l.moves, MovedBytes: l.movedBytes, Traffic: []Rate{}}
	repairs := slices.Clone(l.repairs)
	for _, d := range l.deaths {
		switch {
		case slices.ContainsFunc(d.lost, wanted):
			out.Unrepaired++
		case d.last != 0:
			repairs = append(repairs, d.last-d.at)
		}
	}
	out.Repair = quantiles(repairs)
	span := float64(nodes) * max(float64(at)/second, 1)
	for c, name := range classes {
		is, was := of(total, c), of(l.began, c)
		out.Traffic = append(out.Traffic, Rate{name, Round(float64(is.Messages-was.Messages) / span), Round(float64(is.Bytes-was.Bytes) / span)})
	}
	return out
}

// quantiles are those of spans of time, by nearest rank.
func quantiles(spans []Micros) Quantiles {
	if len(spans) == 0 {
		return Quantiles{}
	}
	spans = slices.Sorted(slices.Values(spans))
	rank := func(q float64) Micros { return spans[int(math.Ceil(q*float64(len(spans))))-1] }
	return Quantiles{Count: len(spans), P50: rank(0.5), P99: rank(0.99), Most: rank(1)}
}

// Round is x to three places, as people read it.
func Round(x float64) float64 { return math.Round(x*1000) / 1000 }

// Duration is so many microseconds as time has them.
func (m Micros) Duration() time.Duration { return time.Duration(m) * time.Microsecond }

// In is d in microseconds.
func In(d time.Duration) Micros { return Micros(d.Microseconds()) }

// Words are the figures in words, but for those that are unknown.
func (m Metrics) Words(unknown []string) (out []string) {
	spans := func(q Quantiles) string {
		if q.Count == 0 {
			return "none"
		}
		d := func(t Micros) time.Duration { return t.Duration().Round(time.Millisecond) }
		return fmt.Sprintf("p50 %v, p99 %v, at most %v, of %d", d(q.P50), d(q.P99), d(q.Most), q.Count)
	}
	say := func(of, format string, args ...any) {
		if !slices.Contains(unknown, of) {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	say(OfStatements, "statements with all nodes: %s; %d overtaken, %d on their way at the end", spans(m.Convergence), m.Overtaken, m.Open)
	say(OfSends, "%.2f messages sent by a node for each statement, %.2f that say nothing new for each that does", m.Sends, m.Duplicates)
	say(OfReplicas, "repair after a machine's end: %s; %d not repaired", spans(m.Repair), m.Unrepaired)
	if slices.Contains(unknown, OfFetches) {
		say(OfReplicas, "%d replicas moved", m.Moves)
	} else {
		say(OfReplicas, "%d replicas moved, %.1f MiB fetched for them", m.Moves, float64(m.MovedBytes)/(1<<20))
	}
	for _, t := range m.Traffic {
		if t.Messages > 0 {
			out = append(out, fmt.Sprintf("%s: %.2f messages and %.0f bytes by a node and second", t.Class, t.Messages, t.Bytes))
		}
	}
	return out
}
