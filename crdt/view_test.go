package crdt

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// However a state came to be, Nodes is what the registers of members say, and one
// slice while they say the same.
func TestNodesFollowTheRegisters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, true)
		s := w.state()
		var last []Node
		for _, raw := range shuffled(t, w.raws) {
			_, _ = s.Apply(raw, time.Time{}) // some are stale, or too early
			v := s.View()
			var want []Node
			for _, nv := range v.nodes.all() {
				if nv.node != nil {
					want = append(want, *nv.node)
				}
			}
			slices.SortFunc(want, func(a, b Node) int { return a.Key.Compare(b.Key) })
			got := v.Nodes()
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("the nodes are %v, and should be %v", got, want)
			}
			for i := range want {
				if r := s.nodes.get(want[i].Key); r == nil || want[i].Seq != r.node.Seq || want[i].Operator != v.OperatorOf(want[i].Key) {
					t.Fatalf("%v is not what the register says", want[i])
				}
			}
			if reflect.DeepEqual(got, last) && len(got) > 0 && &got[0] != &last[0] {
				t.Fatal("a list that did not change was made anew")
			}
			last = got
		}
	})
}

// However a state came to be, a View has as deleted what is held of its owner's
// deletions, and goes on having it so.
func TestViewsTellWhatWasDeleted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.most.owner = rapid.IntRange(1, 8).Draw(t, "bound")
		drawOwnerWork(t, w)
		w.member(stmt.MemberBody{Key: pub("olga"), Revoked: true})
		s := w.state()
		type told struct {
			view *View
			dead [4]bool
		}
		var all []told
		for _, raw := range shuffled(t, w.raws) {
			_, _ = s.Apply(raw, time.Time{}) // some are stale, or too early
			now := told{view: s.View()}
			for i := range now.dead {
				o := s.owners[pub("olga")]
				now.dead[i] = o != nil && o.dead[DocID{byte(i)}]
			}
			all = append(all, now)
		}
		for n, was := range all {
			for i, dead := range was.dead {
				id := DocID{byte(i)}.String()
				if got := was.view.Deleted(pub("olga"), id); got != dead {
					t.Fatalf("view %d has %s as deleted: %v, want %v", n, id, got, dead)
				}
				if was.view.Deleted(pub("otto"), id) {
					t.Fatalf("view %d has %s as deleted by another", n, id)
				}
			}
		}
	})
}
