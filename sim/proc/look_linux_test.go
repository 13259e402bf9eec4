package proc

import (
	"os/exec"
	"reflect"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/record"
)

// looking is a run of n nodes that are up, of which nothing is on this machine.
func looking(nodes int) *run {
	r := &run{look: newSeen(nodes), cuts: map[[2]int]bool{}, began: time.Now()}
	for i := range nodes {
		r.nodes = append(r.nodes, &node{i: i, cmd: new(exec.Cmd), ready: true})
	}
	return r
}

func (r *run) lines() []record.Line {
	all := r.look.End(record.Header{Nodes: len(r.nodes)}, 0, record.End{}).Lines
	return all[:len(all)-1]
}

// A machine ran from its first tick to its last, or until its node was powered off.
func TestMachinesAreSeenToRun(t *testing.T) {
	r := looking(3)
	r.ticks = &watcher{Ticks: Ticks{Pause: 5 * time.Second}}
	r.began = time.Now().Add(-time.Minute)
	at := func(s float64) time.Time { return r.began.Add(time.Duration(s * float64(time.Second))) }
	tick := func(node int, instance string, slot int, from, to float64) {
		for s := from; s <= to; s += 0.5 {
			r.ticks.Ticked(node, instance, slot, at(s), at(s))
		}
	}
	tick(0, "before", 0, -20, -10)
	tick(0, "a", 0, -10, 20) // it stops to tick
	tick(1, "a", 1, 2, 30)   // its node is powered off
	tick(2, "a", 1, 50, 60)  // and it runs elsewhere
	r.nodes[1].off = at(30.1)
	tick(1, "b", 0, 58, 60) // on which another one runs later
	for range 2 {
		r.ticked(record.In(time.Minute)) // the second time there is no news
	}
	replica := func(s float64, instance string, slot, node int, runs bool) record.Line {
		return record.Line{At: record.In(at(s).Sub(r.began)), Replica: &record.Replica{Instance: instance, Slot: slot, Node: node, Runs: runs}}
	}
	want := []record.Line{
		replica(0, "a", 0, 0, true), replica(2, "a", 1, 1, true), replica(20, "a", 0, 0, false), replica(50, "a", 1, 2, true),
		replica(58, "b", 0, 1, true), replica(60, "a", 1, 1, false),
	}
	if got := r.lines(); !reflect.DeepEqual(got, want) {
		for _, l := range got {
			t.Errorf("%d %+v", l.At, l.Replica)
		}
	}
}

// What daemons say that they run is believed of those that still are who was asked.
func TestDaemonsSayWhatRuns(t *testing.T) {
	r := looking(3)
	one := []record.Slot{{Instance: "a"}}
	said := []running{{n: r.nodes[0], of: r.nodes[0].cmd, slots: one}, {n: r.nodes[1], of: new(exec.Cmd), slots: one}, {n: r.nodes[2], of: r.nodes[2].cmd, err: exec.ErrNotFound}}
	r.answered(said)
	said[0].slots = nil
	r.nodes[0].killed = true
	r.answered(said)
	for i, want := range [][]record.Slot{one, nil, nil} {
		if got := r.look.Running(i); !reflect.DeepEqual(got, want) {
			t.Errorf("on n%d runs %v, not %v", i, got, want)
		}
	}
}

func TestStatesAndReach(t *testing.T) {
	cmd := new(exec.Cmd)
	for _, c := range []struct {
		n    node
		want []string
	}{
		{node{}, []string{record.Down}},
		{node{cmd: cmd}, []string{record.Down}},
		{node{cmd: cmd, ready: true}, []string{record.Up}},
		{node{cmd: cmd, ready: true, killed: true}, []string{record.Down}},
		{node{cmd: cmd, ready: true, killed: true, gone: true}, []string{record.Gone}},
		{node{cmd: cmd, ready: true, stopped: true}, []string{record.Up, record.Stalled}},
		{node{cmd: cmd, ready: true, stopped: true, asleep: true, drains: true}, []string{record.Up, record.Asleep, record.Draining}},
	} {
		if got := c.n.states(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: %v", c.n, got)
		}
	}
	r := looking(4)
	r.Note = func(string, ...any) {}
	r.seen, r.loss = map[string]int{}, 0.1
	r.split([]int{3, 1})
	r.cuts[[2]int{0, 2}] = true
	want := record.Net{Sides: [][]int{{1, 3}}, Cuts: [][2]int{{0, 2}}, Loss: 0.1}
	if got := r.reach(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	r.heal()
	if got, want := r.reach(), (record.Net{Loss: 0.1}); !reflect.DeepEqual(got, want) {
		t.Errorf("healed: %+v", got)
	}
}

func TestCounters(t *testing.T) {
	const line = " 1296 16 0 0 0 0 0 0 4242 17 0 0 0 0 0 0"
	if got, err := sentIn(line); err != nil || got != (record.Sent{Messages: 17, Bytes: 4242}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "1 2 3", " 1296 16 0 0 0 0 0 0 x 17"} {
		if got, err := sentIn(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
