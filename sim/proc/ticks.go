package proc

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Ticks is when machines were seen to run, by what they write again and again and not
// by what anybody says of them. Its zero value is ready.
type Ticks struct {
	// Pause is longer than what lies between two ticks of a machine that runs.
	Pause time.Duration

	mu    sync.Mutex
	spans []Span // in the order of From
}

// Span is a time in which a machine of a replica ran on a node: it ticked at its
// ends, and at least every Pause between them.
type Span struct {
	Node     int
	Instance string
	Slot     int
	From, To time.Time
}

// Ticked takes note that a machine ran at some moment from then to now.
func (t *Ticks) Ticked(node int, instance string, slot int, then, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.spans {
		if s := &t.spans[i]; s.Node == node && s.Instance == instance && s.Slot == slot && then.Sub(s.To) < t.Pause {
			if now.After(s.To) {
				s.To = now
			}
			return
		}
	}
	t.spans = append(t.spans, Span{node, instance, slot, then, now})
}

// Since says whether a machine on a node has ticked since then.
func (t *Ticks) Since(node int, then time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.spans, func(s Span) bool { return s.Node == node && s.To.After(then) })
}

// Forgive drops the spans of a node that lie between two times, and gives their
// length.
func (t *Ticks) Forgive(node int, from, to time.Time) (length time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans = slices.DeleteFunc(t.spans, func(s Span) bool {
		in := s.Node == node && s.To.After(from) && s.To.Before(to)
		if in {
			length += s.To.Sub(s.From)
		}
		return in
	})
	return length
}

// All are the spans so far.
func (t *Ticks) All() []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.spans)
}

// Spans are those of an instance, in their order.
func (t *Ticks) Spans(instance string) []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := slices.DeleteFunc(slices.Clone(t.spans), func(s Span) bool { return s.Instance != instance })
	slices.SortStableFunc(out, func(a, b Span) int { return a.From.Compare(b.From) })
	return out
}

// Twice says when two machines of an instance ran at once.
func (t *Ticks) Twice(instance string) (out []string) {
	var last Span // that ends last of those so far
	for _, s := range t.Spans(instance) {
		if last.Node != s.Node && s.From.Before(last.To) {
			both := min(s.To.Sub(s.From), last.To.Sub(s.From))
			out = append(out, fmt.Sprintf("it ran on n%d and n%d at once for %v", last.Node, s.Node, both.Round(time.Millisecond)))
		}
		if s.To.After(last.To) {
			last = s
		}
	}
	return out
}
