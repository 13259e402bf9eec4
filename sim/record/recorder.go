package record

import (
	"cmp"
	"slices"
)

// Bounds of a recording. A line of a kind above its most is counted and left out.
const (
	MaxNodes   = 10_000
	maxText    = 500
	maxCuts    = 2_000
	maxRegions = 256
	maxClasses = 32
	maxLine    = 1 << 20
)

// Most is how many lines of each kind there are at most.
var Most = map[string]int{
	"node": 100_000, "net": 2_000, "step": 20_000, "replica": 100_000, "statement": 20_000, "broken": 1_000, "traffic": 20_000,
}

// maxLines is more than a recording has.
const maxLines = 300_000

// Recorder collects what happens. Its zero value is ready.
type Recorder struct {
	lines []Line
	have  map[string]int
	left  map[string]Left
}

// kind names what l tells of; "": of nothing, or of more than one thing.
func (l *Line) kind() string {
	kind, n := "", 0
	for _, k := range []struct {
		name string
		is   bool
	}{
		{"node", l.Node != nil}, {"net", l.Net != nil}, {"step", l.Step != nil}, {"replica", l.Replica != nil},
		{"statement", l.Statement != nil}, {"broken", l.Broken != nil}, {"traffic", l.Traffic != nil}, {"end", l.End != nil},
	} {
		if k.is {
			kind = k.name
			n++
		}
	}
	if n != 1 {
		return ""
	}
	return kind
}

// Add takes a line, or counts it as left out. Lines may come in any order.
func (r *Recorder) Add(l Line) {
	kind := l.kind()
	if r.have == nil {
		r.have, r.left = map[string]int{}, map[string]Left{}
	}
	if r.have[kind] >= Most[kind] {
		left, ok := r.left[kind]
		if left.Lines++; !ok {
			left.Since = l.At
		}
		r.left[kind] = left
		return
	}
	r.have[kind]++
	r.lines = append(r.lines, l.bounded())
}

// bounded is l with its texts and lists cut to what a reader takes.
func (l Line) bounded() Line {
	switch {
	case l.Step != nil:
		s := *l.Step
		s.Text = clip(s.Text, maxText)
		l.Step = &s
	case l.Broken != nil:
		b := *l.Broken
		b.What = clip(b.What, maxText)
		l.Broken = &b
	case l.Replica != nil:
		r := *l.Replica
		r.Name = clip(r.Name, maxText)
		l.Replica = &r
	case l.Net != nil && len(l.Net.Cuts) > maxCuts:
		n := *l.Net
		n.CutsMore += len(n.Cuts) - maxCuts
		n.Cuts = n.Cuts[:maxCuts]
		l.Net = &n
	}
	return l
}

// End is the recording, once the last line is known.
func (r *Recorder) End(h Header, at Micros, end End) *Recording {
	h.Version = Version
	h.Scenario, h.About, h.Replay = clip(h.Scenario, maxText), clip(h.About, maxText), clip(h.Replay, maxLine/4)
	slices.SortStableFunc(r.lines, func(a, b Line) int { return cmp.Compare(a.At, b.At) })
	if len(r.left) > 0 {
		end.Left = r.left
	}
	if n := len(r.lines); n > 0 {
		at = max(at, r.lines[n-1].At)
	}
	return &Recording{Header: h, Lines: append(r.lines, Line{At: at, End: &end})}
}
