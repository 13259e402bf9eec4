package plan

import (
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Whatever changes: a Brief that is made of the one before is the one that is made of
// nothing. An instance that changed has another list of claims, as a View has it.
func TestABriefFollowsChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := settledFleet(30, 12)
		before := w.Briefed(World{})
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			w.Claims = maps.Clone(w.Claims)
			i := rapid.IntRange(0, len(w.Instances)-1).Draw(t, "instance")
			k := w.Nodes[rapid.IntRange(0, len(w.Nodes)-1).Draw(t, "node")].Key
			s := &w.Instances[i]
			switch rapid.IntRange(0, 6).Draw(t, "change") {
			case 0: // a claim goes on
				w.Claims[s.ID] = slices.Clone(w.Claims[s.ID])
				c := &w.Claims[s.ID][rapid.IntRange(0, 2).Draw(t, "claim")]
				c.Phase, c.Ready = crdt.ClaimLaunching, !c.Ready
			case 1: // or moves
				w.Claims[s.ID] = slices.Clone(w.Claims[s.ID])
				w.Claims[s.ID][0].Node = k
			case 2: // an owner changes something
				w.Instances = slices.Clone(w.Instances)
				w.Claims[s.ID] = slices.Clone(w.Claims[s.ID])
				w.Instances[i].Generation++
				w.Instances[i].VCPU = rapid.IntRange(1, 64).Draw(t, "vcpu")
			case 3:
				w.Dead = maps.Clone(w.Dead)
				w.Dead[k] = time.Second
			case 4:
				w.Dead = map[stmt.Key]time.Duration{}
			case 5:
				w.Nodes = slices.Clone(w.Nodes)
				n := &w.Nodes[rapid.IntRange(0, len(w.Nodes)-1).Draw(t, "changed")]
				n.Draining = !n.Draining
			case 6:
				w.Members[0]++
				out := k
				w.MayRun = func(_ *crdt.Spec, node stmt.Key) bool { return node != out }
			}
			next, fresh := w.Briefed(before), w.Briefed(World{})
			for _, c := range []struct {
				what      string
				got, want any
			}{
				{"claims, ranks and packs", next.brief.by, fresh.brief.by}, {"interest", next.brief.watch, fresh.brief.watch},
				{"what concerns all", next.brief.all, fresh.brief.all}, {"who drains", next.brief.drains, fresh.brief.drains},
				{"strays", next.brief.strays, fresh.brief.strays},
			} {
				if !reflect.DeepEqual(c.got, c.want) {
					t.Fatalf("%s: %v, and of nothing %v", c.what, c.got, c.want)
				}
			}
			before = next
		}
	})
}

// What did not change is not looked for again.
func TestABriefCostsWhatChanged(t *testing.T) {
	w := settledFleet(200, 50)
	before := w.Briefed(World{})
	before.brief.found[7].by = nil // which nobody would find
	w.Claims = maps.Clone(w.Claims)
	id := w.Instances[3].ID
	w.Claims[id] = slices.Clone(w.Claims[id])
	next := w.Briefed(before)
	if next.brief.found[7].by != nil {
		t.Error("an instance that did not change was looked at")
	}
	if len(next.brief.found[3].by) == 0 || !identical(next.brief.found[3].claims, w.Claims[id]) {
		t.Error("one that changed was not")
	}
}
