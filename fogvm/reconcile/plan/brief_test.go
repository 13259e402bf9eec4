package plan

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever changes: a Brief that is made of the one before is the one that is made of
// nothing. An instance that changed has another list of claims, as a View has it.
func TestABriefFollowsChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := settledFleet(30, 12)
		before := w.Briefed(World{})
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			drift(t, &w)
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
