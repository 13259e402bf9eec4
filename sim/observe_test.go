package sim

import (
	"bytes"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

func parsed(t *testing.T, text string) *scenario.Scenario {
	t.Helper()
	s, err := scenario.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A recording says what the run's own state says: who is there, what runs where, and
// how long what a machine ran took to run again.
func TestRecordingAndMetrics(t *testing.T) {
	s := parsed(t, `about: one of ten goes away and two are cut off for a while
nodes: 10
network: {loss: 0.02, regions: true}
workload: {instances: 1.5/node, replicas: 2}
schedule:
  - {at: 20s, do: kill, node: running}
  - {then: 30s, repeat: 5, every: 1s, do: change}
  - {then: 5s, do: partition, share: 0.2}
  - {then: 10s, do: heal}
expect: {settle: 3m, delivery-p99: 60s, sends: 20}
`)
	r := Run(t.Context(), expand(t, s, 0, 7), "")
	for _, b := range r.Bad {
		t.Error(b)
	}
	var out bytes.Buffer
	if err := r.Recording.Write(&out); err != nil {
		t.Fatal(err)
	}
	rec, err := record.Read(&out)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(rec, r.Recording) {
		t.Error("what is read is not what was written")
	}
	killed, runs, lost, restored := -1, map[string][]int{}, map[string]bool{}, record.Micros(0)
	var sides, samples, statements int
	for _, l := range rec.Lines {
		switch {
		case l.Step != nil && l.Step.N == 0:
			killed = l.Step.Node
		case l.Node != nil && slices.Contains(l.Node.Is, record.Gone):
			if l.Node.N != killed || l.At != 20_000_000 {
				t.Errorf("n%d is gone at %d, the step says n%d", l.Node.N, l.At, killed)
			}
		case l.Replica != nil:
			key := l.Replica.Name + "/" + string(rune('0'+l.Replica.Slot))
			if l.Replica.Runs {
				runs[key] = append(runs[key], l.Replica.Node)
				if lost[key] {
					delete(lost, key)
					restored = l.At
				}
			} else {
				runs[key] = slices.DeleteFunc(runs[key], func(n int) bool { return n == l.Replica.Node })
				lost[key] = l.Replica.Node == killed && l.At == 20_000_000
			}
		case l.Net != nil && len(l.Net.Sides) > 0:
			sides += len(l.Net.Sides[0])
		case l.Traffic != nil:
			samples++
		case l.Statement != nil:
			statements++
		}
	}
	m := r.Metrics
	if m.Repair.Count != 1 || m.Repair.Most != restored-20_000_000 {
		t.Errorf("repair: %+v, by the lines all ran again at %d", m.Repair, restored)
	}
	if len(runs) != 30 {
		t.Errorf("%d replicas ran, 30 are wanted", len(runs))
	}
	for key, on := range runs {
		if len(on) != 1 || on[0] == killed {
			t.Errorf("%s runs on %v in the end", key, on)
		}
	}
	if sides != 2 {
		t.Errorf("%d nodes were cut off, not 2", sides)
	}
	if want := int(r.Virtual / time.Second); samples < want-3 || samples > want {
		t.Errorf("%d samples of traffic in %v", samples, r.Virtual)
	}
	if m.Convergence.Count == 0 || m.Convergence.Count+m.Overtaken+m.Open != statements || m.Convergence.P50 > m.Convergence.P99 {
		t.Errorf("convergence: %+v, %d overtaken, %d open, %d lines", m.Convergence, m.Overtaken, m.Open, statements)
	}
	if m.Moves == 0 || m.MovedBytes == 0 || m.Sends == 0 {
		t.Errorf("%+v", m)
	}
	if len(rec.At) != 10 || rec.Regions[rec.At[3]].Name == "" {
		t.Errorf("places: %v", rec.At)
	}
	t.Logf("%+v", m)
}

// What statements may take to all, and what may be sent for one, is held.
func TestDeliveryIsHeld(t *testing.T) {
	for _, c := range []struct {
		expect string
		breaks des.Invariant
	}{
		{"delivery-p99: 1ms", Delivery}, {"sends: 0.1", Sends}, {"delivery-p99: 10s, sends: 50", ""},
	} {
		s := parsed(t, "about: a drain\nnodes: 10\nworkload: {instances: 5, replicas: 1}\nschedule: [{at: 2s, do: drain, node: 1}]\nuntil: 20s\nexpect: {"+c.expect+"}\n")
		r := Run(t.Context(), expand(t, s, 0, 1), "")
		if got := len(r.Bad) > 0; got != (c.breaks != "") || got && !r.Broke(c.breaks) {
			t.Errorf("%s: %v", c.expect, r.Bad)
		}
	}
	s := parsed(t, "about: nothing\nnodes: 10\nschedule: [{at: 2s, do: heal}]\nexpect: {delivery-p99: 1s}\n")
	if r := Run(t.Context(), expand(t, s, 0, 1), ""); !r.Broke(Delivery) {
		t.Error("of nothing said it is taken to have come to all")
	}
}
