package sim

import (
	"slices"
	"testing"
)

// Every scenario runs, keeps its invariants, and repeats itself.
func TestScenarios(t *testing.T) {
	for _, sc := range Scenarios() {
		t.Run(sc.Name, func(t *testing.T) {
			nodes := sc.Nodes
			if sc.Name == "loss-and-stalls" {
				nodes = 10
			}
			a := Run(sc, nodes, 5)
			for _, b := range a.Bad {
				t.Errorf("%s: %s", a.Replay(), b)
			}
			if b := Run(sc, nodes, 5); b.Hash != a.Hash {
				t.Errorf("%s: two runs differ: %s and %s", a.Replay(), a.Hash, b.Hash)
			}
			t.Logf("%s: events=%d virtual=%v hash=%s %q", a.Replay(), a.Events, a.Virtual, a.Hash, a.Notes)
		})
	}
}

func TestScenariosAreSortedAndFound(t *testing.T) {
	var names []string
	for _, sc := range Scenarios() {
		names = append(names, sc.Name)
		if got, ok := Find(sc.Name); !ok || got.About != sc.About {
			t.Errorf("%s is not found", sc.Name)
		}
		if sc.Nodes < MinNodes || sc.Nodes > MaxNodes {
			t.Errorf("%s wants %d nodes", sc.Name, sc.Nodes)
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("not sorted: %v", names)
	}
	if _, ok := Find("nothing"); ok {
		t.Error("a scenario that is not there is found")
	}
}
