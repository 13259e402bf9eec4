package record

import (
	"cmp"
	"slices"
)

// Slot is one replica of an instance.
type Slot struct {
	Instance string
	Slot     int
}

// Sent is what has been sent of a class of traffic so far.
type Sent struct{ Messages, Bytes uint64 }

// Looker records a swarm and measures it, by what it is told is so: what is as it was
// told before is not recorded again. Its zero value is ready. Times are those of the
// run, and do not go back but for those of replicas.
type Looker struct {
	Recorder
	nodes   map[int][]string
	net     *Net
	running map[running]bool
	measure

	began, before []Sent // when the run began, and at the last line of traffic
	sampled       Micros // when that was
	done          int    // statements of which nothing more is to be told since
	slowest       Micros // of those
}

type running struct {
	Slot
	node int
}

// Node is in these states, in the order of States.
func (l *Looker) Node(at Micros, n int, is ...string) {
	if was, known := l.nodes[n]; known && slices.Equal(was, is) {
		return
	}
	if l.nodes == nil {
		l.nodes = map[int][]string{}
	}
	l.nodes[n] = is
	l.ends(at, n, is)
	l.Add(Line{At: at, Node: &Node{N: n, Is: is}})
}

// Reach is who reaches whom. Its cuts may be in any order, and are sorted.
func (l *Looker) Reach(at Micros, n Net) {
	slices.SortFunc(n.Cuts, func(a, b [2]int) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	same := func(a, b []int) bool { return slices.Equal(a, b) }
	if w := l.net; w != nil && slices.EqualFunc(w.Sides, n.Sides, same) && slices.Equal(w.Cuts, n.Cuts) && w.CutsMore == n.CutsMore && w.Loss == n.Loss {
		return
	}
	l.net = &n
	l.Add(Line{At: at, Net: &n})
}

// Replica runs on a node, or does no longer; fetched are the bytes that the node
// fetched for it.
func (l *Looker) Replica(at Micros, r Replica, fetched uint64) {
	key := running{Slot{r.Instance, r.Slot}, r.Node}
	if l.running[key] == r.Runs {
		return
	}
	if l.running == nil {
		l.running = map[running]bool{}
	}
	if l.running[key] = r.Runs; !r.Runs {
		delete(l.running, key)
	}
	l.replica(at, key.Slot, r, fetched)
	l.Add(Line{At: at, Replica: &r})
}

// Running are the replicas that run on a node.
func (l *Looker) Running(node int) (out []Slot) {
	for r := range l.running { // any order: sorted below
		if r.node == node {
			out = append(out, r.Slot)
		}
	}
	slices.SortFunc(out, Slot.compare)
	return out
}

// Spread tells of a statement that all have, or that a later one has overtaken.
func (l *Looker) Spread(at Micros, s Statement, overtaken bool) {
	if overtaken {
		l.overtaken++
	} else {
		l.took = append(l.took, s.All)
	}
	l.done++
	l.slowest = max(l.slowest, s.All)
	l.Add(Line{At: at, Statement: &s})
}

// Begin says what had been sent of each class before the run began; without, nothing
// had.
func (l *Looker) Begin(total []Sent) { l.began, l.before = total, total }

// Traffic says what has been sent of each class so far, and how many statements are
// on their way. It is told of once a second.
func (l *Looker) Traffic(at Micros, total []Sent, open int) {
	if at-l.sampled < second {
		return
	}
	t := &Traffic{Done: l.done, Slowest: l.slowest, Open: open}
	for c, is := range total {
		was := of(l.before, c)
		t.Messages, t.Bytes = append(t.Messages, is.Messages-was.Messages), append(t.Bytes, is.Bytes-was.Bytes)
	}
	l.Add(Line{At: at, Traffic: t})
	l.sampled, l.before, l.done, l.slowest = at, total, 0, 0
}

const second = 1_000_000

func of(total []Sent, class int) Sent {
	if total == nil {
		return Sent{}
	}
	return total[class]
}
