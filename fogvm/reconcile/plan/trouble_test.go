package plan

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Voters that are dead for this node, and those that are no nodes of the network;
// what is stopped, or counts none, is nobody's trouble.
func TestElectorates(t *testing.T) {
	key := func(n ...byte) (out []stmt.Key) {
		for _, n := range n {
			out = append(out, stmt.Key{n})
		}
		return out
	}
	w := World{Dead: map[stmt.Key]time.Duration{{2}: 0, {3}: 0, {9}: 0}}
	for _, k := range key(1, 2, 3, 4, 5) {
		w.Nodes = append(w.Nodes, crdt.Node{Key: k})
	}
	w.Instances = []crdt.Spec{
		{ID: "all", Partition: crdt.PartitionFence, Voters: key(1, 4, 5)},
		{ID: "few", Partition: crdt.PartitionStopMinority, Voters: key(4, 9, 2)},
		{ID: "keep", Voters: key(2, 3, 9)},
		{ID: "most", Partition: crdt.PartitionFence, Voters: key(1, 4, 3)},
		{ID: "none", Partition: crdt.PartitionFence},
		{ID: "stopped", Partition: crdt.PartitionFence, Voters: key(9), Phase: crdt.PhaseStopped},
	}
	var got []string
	for _, e := range w.Electorates() {
		got = append(got, fmt.Sprintf("%s: dead %v, gone %v, lost %v", e.Spec.ID, e.Dead, e.Gone, e.Lost()))
	}
	want := []string{
		"all: dead [], gone [], lost false",
		fmt.Sprintf("few: dead %v, gone %v, lost true", key(2), key(9)),
		fmt.Sprintf("most: dead %v, gone [], lost false", key(3)),
		"none: dead [], gone [], lost true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// Each owner is held to its own bound, and an owner within it, or without one, is
// not named.
func TestOverruns(t *testing.T) {
	quotas := map[stmt.Key]stmt.Quota{{1}: {Replicas: 3}, {2}: {Instances: 1}, {3}: {Replicas: 9}}
	w := World{
		Quota:  func(k stmt.Key) (stmt.Quota, bool) { q, ok := quotas[k]; return q, ok },
		Claims: map[string][]crdt.Claim{"a": {{Node: stmt.Key{7}, Instance: "a", Slot: 2}}},
	}
	for _, s := range []crdt.Spec{
		{ID: "a", Owner: stmt.Key{2}, Replicas: 2}, {ID: "b", Owner: stmt.Key{1}, Replicas: 5}, {ID: "c", Owner: stmt.Key{2}, Replicas: 4},
		{ID: "d", Owner: stmt.Key{3}, Replicas: 5}, {ID: "e", Owner: stmt.Key{4}, Replicas: 50},
	} {
		s.Phase = crdt.PhaseRunning
		w.Instances = append(w.Instances, s)
	}
	want := []Overrun{
		{stmt.Key{1}, 2, 5, "over its owner's quota: 3 replicas allowed"},
		{stmt.Key{2}, 4, 6, "over its owner's quota: 1 instance allowed"},
	}
	if got := w.Overruns(); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
