package record

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What a Looker records is what it was told, each thing when it was other than before,
// however often it was told.
func TestWhatDiffersIsRecorded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Looker
		nodes, net, runs, lines := map[int][]string{}, (*Net)(nil), map[running]bool{}, []Line(nil)
		for at := range Micros(rapid.IntRange(0, 40).Draw(t, "looks")) {
			n := rapid.IntRange(0, 2).Draw(t, "node")
			switch rapid.IntRange(0, 2).Draw(t, "of") {
			case 0:
				is := rapid.SampledFrom([][]string{{Up}, {Down}, {Up, Clogged}, {Gone}}).Draw(t, "is")
				if l.Node(at, n, is...); !slices.Equal(nodes[n], is) {
					nodes[n] = is
					lines = append(lines, Line{At: at, Node: &Node{n, is}})
				}
			case 1:
				is := rapid.SampledFrom([]Net{{}, {Loss: 0.5}, {Sides: [][]int{{1}}}, {Sides: [][]int{{2}}}, {Cuts: [][2]int{{0, 1}}}}).Draw(t, "net")
				if l.Reach(at, is); net == nil || !reflect.DeepEqual(*net, is) {
					net = &is
					lines = append(lines, Line{At: at, Net: &is})
				}
			case 2:
				r := Replica{Instance: "a", Slot: rapid.IntRange(0, 1).Draw(t, "slot"), Node: n, Runs: rapid.Bool().Draw(t, "runs")}
				key := running{Slot{"a", r.Slot}, n}
				if l.Replica(at, r, 0); runs[key] != r.Runs {
					runs[key] = r.Runs
					lines = append(lines, Line{At: at, Replica: &r})
				}
			}
			for n := range 3 {
				var want []Slot
				for slot := range 2 {
					if s := (Slot{"a", slot}); runs[running{s, n}] {
						want = append(want, s)
					}
				}
				if got := l.Running(n); !slices.Equal(got, want) {
					t.Fatalf("on node %d runs %v, want %v", n, got, want)
				}
			}
		}
		if got := l.End(Header{Nodes: 3}, 0, End{}).Lines; !reflect.DeepEqual(got[:len(got)-1], lines) && len(lines) > 0 {
			t.Fatalf("recorded %+v, want %+v", got, lines)
		}
	})
}

// A machine's end is repaired when the last of what it ran runs again; what need not
// run any more need not be repaired, and a daemon without replicas is none.
func TestFigures(t *testing.T) {
	const s = second
	var l Looker
	run := func(at Micros, slot, node int, runs bool) {
		l.Replica(at, Replica{Instance: "a", Slot: slot, Node: node, Runs: runs}, 1000)
	}
	l.Begin([]Sent{{100, 1000}})
	for n := range 4 {
		l.Node(0, n, Up)
		run(0, n, n, n < 3)
	}
	fall := func(at Micros, n int, is string, slots ...int) {
		l.Node(at, n, is)
		for _, slot := range slots {
			run(at, slot, n, false)
		}
	}
	fall(10*s, 0, Gone, 0)
	run(14*s, 0, 3, true) // a move, after 4 s
	fall(20*s, 3, Down, 0)
	l.Node(21*s, 3, Up)
	run(22*s, 0, 3, true) // after 2 s, and no move
	fall(30*s, 1, Down, 1)
	fall(31*s, 2, Down, 2)
	l.Spread(31*s, Statement{Made: 30 * s, All: s}, false)
	l.Spread(31*s, Statement{Made: 30 * s}, true)
	l.Traffic(s/2, []Sent{{200, 2000}}, 1) // too soon
	l.Traffic(s, []Sent{{200, 2000}}, 1)
	l.Traffic(2*s, []Sent{{300, 3000}}, 0)
	got := l.Metrics(40*s, 4, []string{"packets"}, []Sent{{500, 9000}}, 3, func(s Slot) bool { return s.Slot != 2 })
	want := Metrics{
		Convergence: Quantiles{1, s, s, s}, Overtaken: 1, Open: 3, Repair: Quantiles{2, 2 * s, 4 * s, 4 * s}, Unrepaired: 1,
		Moves: 1, MovedBytes: 1000, Traffic: []Rate{{"packets", 2.5, 50}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant\n%+v", got, want)
	}
	var traffic []Traffic
	for _, line := range l.End(Header{Nodes: 4}, 0, End{}).Lines {
		if line.Traffic != nil {
			traffic = append(traffic, *line.Traffic)
		}
	}
	if want := []Traffic{{[]uint64{100}, []uint64{1000}, 2, s, 1}, {Messages: []uint64{100}, Bytes: []uint64{1000}}}; !reflect.DeepEqual(traffic, want) {
		t.Errorf("%+v\nwant\n%+v", traffic, want)
	}
	if n := len(want.Words(nil)); n != 5 {
		t.Errorf("%d lines in words: %q", n, want.Words(nil))
	}
	if w := want.Words(Unknowns); len(w) != 1 {
		t.Errorf("of what is unknown it says %q", w)
	}
}
