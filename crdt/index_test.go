package crdt

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The index that is made from an older one is the one that is made from nothing,
// after any history of statements, deletions, re-roots, freezes, and of nodes that
// are forgotten and remembered.
func TestIndexFromAnOlderOne(t *testing.T) {
	var kept, dropped int
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, true)
		s := w.state()
		check := func() {
			old := s.idx
			got, want := s.index(), s.reindex(nil)
			if fmt.Sprintf("%+v", got.items) != fmt.Sprintf("%+v", want.items) || fmt.Sprint(got.byID) != fmt.Sprint(want.byID) {
				t.Fatalf("index %+v, from nothing %+v", got.items, want.items)
			}
			if got.all() != want.all() {
				t.Fatal("the digests differ")
			}
			if old == nil {
				return
			}
			for id := range old.byID {
				if _, still := got.byID[id]; still {
					kept++
				} else {
					dropped++
				}
			}
		}
		for _, raw := range shuffled(t, w.raws) {
			_, _ = s.Apply(raw, time.Time{})
			switch rapid.IntRange(0, 9).Draw(t, "then") {
			case 0:
				s.Forget(pub(rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "forgotten")))
			case 1:
				s.Remember(pub(rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "remembered")))
			case 2, 3, 4:
				check()
			}
		}
		check()
	})
	if kept == 0 || dropped == 0 {
		t.Errorf("%d items were kept, %d dropped", kept, dropped)
	}
}

// BenchmarkIndex makes the index anew after one change among 10,000 instances;
// BenchmarkIndexFromNothing makes all of it.
func BenchmarkIndex(b *testing.B) {
	s := indexedState(b)
	for range b.N {
		s.changes++
		s.index()
	}
}

func BenchmarkIndexFromNothing(b *testing.B) {
	s := indexedState(b)
	for range b.N {
		s.reindex(nil)
	}
}

func indexedState(b *testing.B) *State {
	w, raws := manyInstances(b, 10_000)
	s := w.state()
	applyAll(s, append(w.raws, raws...))
	s.index()
	b.ResetTimer()
	return s
}
