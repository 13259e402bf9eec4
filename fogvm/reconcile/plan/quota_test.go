package plan

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// quotaWorld draws an owner's instances, some of which run, and a quota.
func quotaWorld(t *rapid.T) (World, stmt.Quota) {
	bound := func(what string, most int) int {
		return rapid.OneOf(rapid.Just(0), rapid.IntRange(1, most)).Draw(t, what)
	}
	q := stmt.Quota{Instances: bound("instances", 5), Replicas: bound("replicas", 8), CPUs: bound("cpus", 10)}
	q.Memory, q.Disk = uint64(bound("memory", 8))<<30, uint64(bound("disk", 40))<<30
	w := World{Claims: map[string][]crdt.Claim{}, Quota: func(stmt.Key) (stmt.Quota, bool) { return q, true }}
	for i := range rapid.IntRange(0, 6).Draw(t, "n") {
		s := crdt.Spec{
			ID: string(rune('a' + i)), Owner: stmt.Key{99}, Pack: "p", Generation: 2, Replicas: rapid.IntRange(0, 4).Draw(t, "replicas"),
			Phase: crdt.PhaseRunning, VCPU: rapid.IntRange(0, 3).Draw(t, "vcpu"), MemoryBytes: rapid.Uint64Range(1, 4).Draw(t, "GiB") << 29,
		}
		if rapid.IntRange(0, 5).Draw(t, "stopped") == 0 {
			s.Phase = crdt.PhaseStopped
		}
		w.Instances = append(w.Instances, s)
		for slot := range s.Replicas {
			if rapid.Bool().Draw(t, "claimed") {
				w.Claims[s.ID] = append(w.Claims[s.ID], crdt.Claim{
					Node: stmt.Key{byte(slot + 1)}, Instance: s.ID, Slot: slot, SpecGeneration: rapid.Uint64Range(1, 2).Draw(t, "generation"),
					Phase: rapid.SampledFrom([]crdt.ClaimPhase{crdt.ClaimRunning, crdt.ClaimFailed, crdt.ClaimDraining}).Draw(t, "phase"),
				})
			}
		}
	}
	return w, q
}

// shared are the slots that a world gives a share.
func shared(w World) map[Slot]bool {
	out := map[Slot]bool{}
	over := w.overQuota(stmt.Key{99})
	for _, sh := range w.shares(stmt.Key{99}) {
		if k := (Slot{sh.spec.ID, sh.slot}); over[k].why == "" {
			out[k] = true
		}
	}
	return out
}

// What may run is within the quota, and nothing that is over would fit; the order
// of claims does not matter; another new instance, or further replicas, take no
// share from what had one before it came and runs.
func TestQuotaHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, q := quotaWorld(t)
		got := shared(w)
		var sum stmt.Quota
		instances := map[string]bool{}
		specs := map[string]*crdt.Spec{}
		for i := range w.Instances {
			specs[w.Instances[i].ID] = &w.Instances[i]
		}
		add := func(sum stmt.Quota, k Slot) stmt.Quota {
			n := place.Need(*specs[k.Instance])
			if !instances[k.Instance] {
				sum.Instances++
			}
			sum.Replicas++
			sum.CPUs, sum.Memory, sum.Disk = sum.CPUs+n.CPUs, sum.Memory+n.Memory, sum.Disk+n.Disk
			return sum
		}
		for k := range got {
			sum = add(sum, k)
			instances[k.Instance] = true
		}
		if bound := exceeded(sum, q); bound != "" {
			t.Fatalf("%+v of %+v: %s allowed", sum, q, bound)
		}
		over := w.overQuota(stmt.Key{99})
		changes := slices.ContainsFunc(slices.Collect(maps.Values(over)), func(e excess) bool { return e.change })
		for k, over := range over {
			// A change that is refused counts as all that was left.
			if !changes && exceeded(add(sum, k), q) == "" {
				t.Fatalf("%v is %s, and would fit beside %+v", k, over.why, sum)
			}
		}
		shuffled := w
		shuffled.Claims = maps.Clone(w.Claims)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for id, cs := range shuffled.Claims {
			cs = slices.Clone(cs)
			rng.Shuffle(len(cs), func(i, j int) { cs[i], cs[j] = cs[j], cs[i] })
			shuffled.Claims[id] = cs
		}
		if again := shared(shuffled); !maps.Equal(again, got) {
			t.Fatalf("another order of claims gives %v, not %v", again, got)
		}
		more := w
		more.Instances = append([]crdt.Spec{{ID: "A", Owner: stmt.Key{99}, Replicas: 4, Phase: crdt.PhaseRunning}}, w.Instances...)
		for i := range more.Instances {
			more.Instances[i].Replicas++
		}
		after := shared(more)
		for _, sh := range w.shares(stmt.Key{99}) {
			if k := (Slot{sh.spec.ID, sh.slot}); sh.class == shareRuns && got[k] && !after[k] {
				t.Fatalf("%v loses its share to what is new", k)
			}
		}
	})
}

func TestStatusNamesTheQuota(t *testing.T) {
	running := crdt.ClaimRunning
	older := claimOf(1, 0, running, true)
	older.SpecGeneration = 2
	for _, tc := range []struct {
		name   string
		quota  stmt.Quota
		claims []crdt.Claim
		word   string
		reason string
	}{
		{"all over", stmt.Quota{Memory: 1 << 20}, nil, Failure, "replica 0 is over its owner's quota: 1 MiB of memory allowed"},
		{"one over", stmt.Quota{Replicas: 1}, []crdt.Claim{claimOf(1, 0, running, true)}, Success, "1 of 2 replicas ready: replica 1 is over its owner's quota: 1 replica allowed"},
		{"one on its way", stmt.Quota{CPUs: 1}, []crdt.Claim{claimOf(1, 0, crdt.ClaimFetching, false)}, Pending, "replica 0 is fetching"},
		{"a change", stmt.Quota{Disk: 1 << 20}, []crdt.Claim{older}, Failure, "the change cannot be rolled out: replica 0 is over its owner's quota: 1 MiB of disk allowed"},
		{"no bound", stmt.Quota{}, []crdt.Claim{claimOf(1, 0, running, true), claimOf(2, 1, running, true)}, Success, ""},
	} {
		w, s := world3()
		w.Claims["web"] = tc.claims
		w.Quota = func(stmt.Key) (stmt.Quota, bool) { return tc.quota, true }
		word, reason := Status(w, s)
		if word != tc.word || !strings.Contains(reason, tc.reason) {
			t.Errorf("%s: %s { %s }, want %s { %s }", tc.name, word, reason, tc.word, tc.reason)
		}
		if got := w.WantedHolders("p1"); (got == 0) != (tc.name == "all over" || tc.name == "a change" && got == 0) {
			t.Errorf("%s: %d nodes are to hold the pack", tc.name, got)
		}
	}
}
