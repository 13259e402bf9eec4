package crdt

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// drawOwnerBody draws a well-formed body over few instances and devices.
func drawOwnerBody(t *rapid.T) ownerBody {
	var b ownerBody
	for i := range byte(4) {
		switch rapid.IntRange(0, 3).Draw(t, "instance") {
		case 0:
			b.Live = append(b.Live, DocID{i})
		case 1:
			b.Dead = append(b.Dead, DocID{i})
		}
		key := stmt.Key{i + 1}
		switch rapid.IntRange(0, 3).Draw(t, "device") {
		case 0:
			b.Devices = append(b.Devices, deviceBody{Key: key, Number: rapid.Uint64Range(0, 2).Draw(t, "n"), Name: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "name")})
		case 1:
			b.Gone = append(b.Gone, key)
		}
	}
	return b
}

// Subsumption is a partial order, and the order of the quota goes with it.
func TestOwnerStatementsAreOrdered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawOwnerBody(t), drawOwnerBody(t), drawOwnerBody(t)
		of := func(n byte, b ownerBody) *ownerStmt {
			return &ownerStmt{rec: rec{id: stmt.ID{n}}, body: b, opaque: rapid.IntRange(0, 4).Draw(t, "opaque") == 0}
		}
		if a.subsumes(b) && b.subsumes(c) && !a.subsumes(c) {
			t.Fatalf("not transitive: %+v, %+v, %+v", a, b, c)
		}
		if a.subsumes(b) && b.subsumes(a) && fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("each subsumes the other: %+v, %+v", a, b)
		}
		x, y := of(1, a), of(2, b)
		if x.covers(y) && compareOwnerStmts(x, y) >= 0 || y.covers(x) && compareOwnerStmts(y, x) >= 0 {
			t.Fatalf("what covers another does not come before it: %+v, %+v", a, b)
		}
		if compareOwnerStmts(x, y) != -compareOwnerStmts(y, x) {
			t.Fatalf("no order: %+v, %+v", a, b)
		}
	})
}

// Over the bound, everybody holds the same statements of an owner in the end, and
// no more than the bound in between.
func TestOwnerQuotaConverges(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	for i := range maxOwnerStatements + 60 { // none subsumes another: one death each, of an own instance
		b := ownerBody{Dead: []DocID{{1, byte(i), byte(i >> 8)}}}
		for n := range i % 7 {
			b.Live = append(b.Live, DocID{2, byte(n)})
		}
		body, err := stmt.Marshal(b)
		w.register("olga", stmt.KindOwner, 0, 0, body, err)
		if i%9 == 0 { // and one that subsumes it
			b.Live = append(b.Live, DocID{3, byte(i), byte(i >> 8)})
			body, err := stmt.Marshal(b)
			w.register("olga", stmt.KindOwner, 0, 0, body, err)
		}
	}
	fill := func(raws [][]byte) *State {
		s := w.state()
		for range 2 {
			applyAll(s, raws)
			if n := len(s.owners[pub("olga")].stmts); n != maxOwnerStatements || len(s.ids) != n+1 {
				t.Fatalf("%d statements are held, %d IDs", n, len(s.ids))
			}
		}
		return s
	}
	back := slices.Clone(w.raws)
	slices.Reverse(back[1:])
	one, two := fill(w.raws), fill(back)
	if digest(one.index().items) != digest(two.index().items) || render(one.View()) != render(two.View()) {
		t.Fatalf("the order of arrival matters: %s", diffIndex(one, two))
	}
}

// What an owner's statements add up to one by one is what they say all together.
func TestOwnerAddsUp(t *testing.T) {
	var many []DocID
	for i := range MaxInstances - 2 {
		many = append(many, DocID{9, byte(i)})
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.admit("olga", stmt.RoleOwner)
		s := w.state()
		applyAll(s, w.raws)
		for range rapid.IntRange(1, 30).Draw(rt, "statements") {
			var b ownerBody
			if rapid.IntRange(0, 9).Draw(rt, "kind") == 0 {
				b.Live = many
			}
			for i := range byte(6) {
				switch d := (DocID{10 + i}); rapid.IntRange(0, 3).Draw(rt, "fact") {
				case 0:
					b.Live = append(slices.Clone(b.Live), d)
				case 1:
					b.Dead = append(b.Dead, d)
				}
			}
			body, err := stmt.Marshal(b)
			if _, err := s.Apply(w.register("olga", stmt.KindOwner, 0, 0, body, err), time.Time{}); err != nil {
				continue
			}
			o := s.owners[pub("olga")]
			live, dead, over := maps.Clone(o.live), maps.Clone(o.dead), o.over
			s.refreshOwner(pub("olga"), o)
			if !maps.Equal(live, o.live) || !maps.Equal(dead, o.dead) || over != o.over {
				rt.Fatalf("live %v, dead %v, over %v; all together %v, %v, %v", live, dead, over, o.live, o.dead, o.over)
			}
		}
	})
}
