package sim

import (
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/sim/des"
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

// What is worth more than one seed, and what has to break its invariants.
func TestPartitionContracts(t *testing.T) {
	for _, c := range []struct {
		scenario string
		mutants  []des.Mutant
		breaks   string // what each of them does, among what is told
	}{
		{"fence-partition", []des.Mutant{des.NoMargin, des.VotesForgotten, des.TakeoverAtOnce, des.NoKeeper}, "at once"},
		{"stop-minority-partition", []des.Mutant{des.NoVoters}, "which sees too few of its voters"},
		{"keep-partition", []des.Mutant{des.SurplusStays}, "not settled"},
		{"byzantine", []des.Mutant{openToAll}, "which only honest nodes may run"},
		{"laptop-sleep", []des.Mutant{des.NoResync}, "decides by what it knew before it slept"},
	} {
		sc, _ := Find(c.scenario)
		t.Run(c.scenario, func(t *testing.T) {
			for seed := range uint64(seeds) {
				r := Run(sc, 0, seed)
				for _, b := range r.Bad {
					t.Errorf("%s: %s", r.Replay(), b)
				}
				t.Logf("%s: events=%d virtual=%v %q", r.Replay(), r.Events, r.Virtual, r.Notes)
			}
		})
		for _, m := range c.mutants {
			t.Run(c.scenario+"/"+string(m), func(t *testing.T) {
				for seed := range uint64(mutantSeeds) {
					bad := runAs(sc, 0, seed, m).Bad
					if i := slices.IndexFunc(bad, func(b string) bool { return strings.Contains(b, c.breaks) }); i >= 0 {
						t.Logf("seed %d: %s", seed, bad[i])
						return
					}
				}
				t.Errorf("no seed below %d breaks what it should: %q", mutantSeeds, c.breaks)
			})
		}
	}
}

// Seeds of a scenario, and how many a mutant may survive.
const (
	seeds       = 2
	mutantSeeds = 8
)

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
