package des

import (
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
)

// ledger is a Watcher that keeps what it is told.
type ledger struct {
	is      map[int]Condition
	runs    map[plan.Slot][]int
	nets    []Reach
	spreads []Spread
	fetched uint64
}

func (l *ledger) Node(_ time.Duration, i int, is Condition) { l.is[i] = is }
func (l *ledger) Network(_ time.Duration, net Reach)        { l.nets = append(l.nets, net) }
func (l *ledger) Spread(_ time.Duration, s Spread)          { l.spreads = append(l.spreads, s) }

func (l *ledger) Replica(_ time.Duration, i int, r Replica) {
	l.fetched += r.Fetched
	on := slices.DeleteFunc(l.runs[r.Slot], func(n int) bool { return n == i })
	if r.Runs {
		on = append(on, i)
		slices.Sort(on)
	}
	if l.runs[r.Slot] = on; len(on) == 0 {
		delete(l.runs, r.Slot)
	}
}

// Who looks on leaves no trace, and has been told at every moment what is.
func TestAWatcherIsToldAndChangesNothing(t *testing.T) {
	for seed := range uint64(2) {
		l := &ledger{is: map[int]Condition{}, runs: map[plan.Slot][]int{}}
		var hashes []string
		for _, w := range []Watcher{nil, l} {
			s := New(Config{Seed: seed, Nodes: 12, Net: lossy, Watch: w})
			s.Absent(11)
			s.Boot(Workload{Instances: 8, Replicas: 2})
			rng := chance.Stream(seed, 99)
			for range 15 {
				chaos(s, rng)
				s.Run(time.Duration(rng.IntN(6000)) * time.Millisecond)
				if w != nil {
					agrees(t, seed, s, l)
				}
			}
			s.Kill(3)
			s.Join(11)
			s.Heal()
			for i := range s.Nodes() {
				s.Start(i)
			}
			s.Run(time.Minute)
			if w != nil {
				agrees(t, seed, s, l)
			}
			hashes = append(hashes, s.Hash())
		}
		if hashes[0] != hashes[1] {
			t.Errorf("seed %d: %s, and %s with somebody who looks on", seed, hashes[0], hashes[1])
		}
		if len(l.spreads) == 0 || len(l.nets) == 0 || l.fetched == 0 {
			t.Errorf("seed %d: %d statements, %d networks, %d bytes fetched", seed, len(l.spreads), len(l.nets), l.fetched)
		}
		for _, sp := range l.spreads {
			if !sp.Open && !(sp.Half <= sp.Most && sp.Most <= sp.All && sp.Half > 0) {
				t.Errorf("seed %d: half, most and all: %+v", seed, sp)
			}
		}
	}
}

func agrees(t *testing.T, seed uint64, s *Sim, l *ledger) {
	t.Helper()
	for i := range s.Nodes() {
		is := l.is[i]
		if (is&Up != 0) != s.Up(i) || (is&Gone != 0) != s.Gone(i) || (is&Absent != 0) != s.Awaited(i) || (is&Drains != 0) != s.Draining(i) {
			t.Fatalf("seed %d at %v: n%d is told to be %b", seed, s.Now(), i, is)
		}
	}
	for slot := range l.runs {
		if got, want := l.runs[slot], s.Executing(slot); !subset(got, want) {
			t.Fatalf("seed %d at %v: %v is told to run on %v, and does on %v", seed, s.Now(), slot, got, want)
		}
	}
	for slot, on := range s.Placement() {
		if !subset(slices.DeleteFunc(on, func(i int) bool { return s.nodes[i].asleep(s.now) }), l.runs[slot]) {
			t.Fatalf("seed %d at %v: %v runs on %v, told: %v", seed, s.Now(), slot, on, l.runs[slot])
		}
	}
}

func subset(a, b []int) bool {
	return !slices.ContainsFunc(a, func(i int) bool { return !slices.Contains(b, i) })
}

// A statement is with all when each node that was up has it, and whom it waits for may
// go down.
func TestSpread(t *testing.T) {
	l := &ledger{is: map[int]Condition{}, runs: map[plan.Slot][]int{}}
	s := New(Config{Seed: 4, Nodes: 10, Watch: l})
	s.Boot(Workload{Instances: 3, Replicas: 1})
	s.Run(10 * time.Second)
	l.spreads = nil
	s.Partition([]int{0, 1, 2, 3, 4, 5, 6, 7, 8}, []int{9})
	s.Drain(2, true) // says something of itself
	s.Run(5 * time.Second)
	if n := len(s.Spreading()); n == 0 || s.Spreading()[0].Half == 0 || s.Spreading()[0].All != 0 {
		t.Fatalf("with one that is cut off: %+v are on their way", s.Spreading())
	}
	waited := s.Spreading()[0]
	s.Crash(9, true)
	s.Run(2 * time.Second)
	i := slices.IndexFunc(l.spreads, func(sp Spread) bool { return sp.Kind == waited.Kind && sp.Made == waited.Made })
	if i < 0 || l.spreads[i].Open || l.spreads[i].Nodes != 9 || l.spreads[i].All < 5*time.Second {
		t.Errorf("after it went down: %+v", l.spreads)
	}
}
