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
		if x.says(y) && compareOwnerStmts(x, y) >= 0 || y.says(x) && compareOwnerStmts(y, x) >= 0 {
			t.Fatalf("what covers another does not come before it: %+v, %+v", a, b)
		}
		if compareOwnerStmts(x, y) != -compareOwnerStmts(y, x) {
			t.Fatalf("no order: %+v, %+v", a, b)
		}
	})
}

// drawOwnerWork draws what devices of an owner do that hear little of each other:
// statements that list and delete, some with fields of a later version.
func drawOwnerWork(t *rapid.T, w *world) {
	w.admit("olga", stmt.RoleOwner)
	for range rapid.IntRange(1, 16).Draw(t, "statements") {
		body, err := stmt.Marshal(drawOwnerBody(t))
		if rapid.IntRange(0, 3).Draw(t, "later version") == 0 && err == nil {
			m := map[string]any{}
			if err = stmt.Unmarshal(body, &m); err == nil {
				m["later"] = rapid.IntRange(0, 1).Draw(t, "later")
				body, err = stmt.Marshal(m)
			}
		}
		w.register("olga", stmt.KindOwner, 0, uint64(len(w.raws)), body, err)
	}
}

// Over the bound on owner statements, everybody holds the same in the end, or has
// the owner closed, and no more than the bound in between.
func TestOwnerQuotaConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.most.owner = rapid.IntRange(1, 8).Draw(t, "bound")
		drawOwnerWork(t, w)
		checkConverges(t, w, 8)
		s := w.state()
		applyAll(s, w.raws)
		o := s.owners[pub("olga")]
		if len(o.stmts) > w.most.owner || s.ids.len() != len(o.stmts)+1 {
			t.Fatalf("%d statements are held, %d IDs", len(o.stmts), s.ids.len())
		}
	})
}

// What a replica has accepted as deleted is never there again, whatever comes when
// and however often, and over the bound too; nor, once they have talked, on any
// other.
func TestDeletedStaysDeletedOverQuota(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt)
		w.most.owner = rapid.IntRange(1, 4).Draw(rt, "bound")
		drawOwnerWork(rt, w)
		dead, gone := map[DocID]bool{}, map[stmt.Key]bool{}
		all, allGone := map[DocID]bool{}, map[stmt.Key]bool{}
		check := func(s *State, when string) {
			if o := s.owners[pub("olga")]; o != nil {
				for d := range o.live {
					if dead[d] {
						rt.Fatalf("%s: %s lives again", when, d)
					}
				}
			}
			for _, d := range s.devicesOf(pub("olga")) {
				if gone[d.Key] {
					rt.Fatalf("%s: device %s is back", when, d.Key)
				}
			}
		}
		states := []*State{w.state(), w.state(), w.state()}
		for _, s := range states {
			clear(dead) // of this replica alone
			clear(gone)
			raws := shuffled(rt, w.raws)
			for _, raw := range raws[:rapid.IntRange(len(raws)/2, len(raws)).Draw(rt, "heard")] {
				st, err := stmt.Peek(raw, w.net)
				if err != nil {
					rt.Fatal(err)
				}
				if changed, _ := s.Apply(raw, time.Time{}); changed && st.Kind == stmt.KindOwner {
					b, _, err := decodeOwner(st)
					if err != nil {
						rt.Fatal(err)
					}
					for _, d := range b.Dead {
						dead[d] = true
					}
					for _, k := range b.Gone {
						gone[k] = true
					}
				}
				check(s, "as it came")
			}
			maps.Copy(all, dead)
			maps.Copy(allGone, gone)
			again := w.state()
			applyAll(again, s.Held())
			check(again, "from what is held")
		}
		dead, gone = all, allGone
		settle(t, rt, states)
		for _, s := range states {
			check(s, "after sessions")
		}
	})
}

// An owner that is closed opens again with the next page that an Author signs, and
// what was deleted stays so.
func TestClosedOwnerOpensAgain(t *testing.T) {
	w := newWorld(t)
	w.most.owner = 4
	w.admit("olga", stmt.RoleOwner)
	var ids []DocID
	for i := range 6 { // all in one page, each device on its own
		body, err := stmt.Marshal(ownerBody{Live: []DocID{{0, 1, byte(i)}}, Dead: []DocID{{0, 0, byte(i)}}})
		w.register("olga", stmt.KindOwner, 0, 0, body, err)
		ids = append(ids, DocID{0, 0, byte(i)})
	}
	s := w.state()
	applyAll(s, w.raws)
	if o := s.owners[pub("olga")]; !o.closed || len(o.live) != 0 {
		t.Fatalf("%d of too many statements leave the owner open", len(o.stmts))
	}
	r := &Replica{state: s}
	if got := r.ClosedOwners(); !slices.Equal(got, []stmt.Key{pub("olga")}) {
		t.Errorf("closed: %v", got)
	}
	a := w.author("olga", s.OwnerStatements(pub("olga")))
	page, err := a.signPage(DocID{0, 2}, false)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := s.Apply(page, testNow); !changed || err != nil {
		t.Fatalf("the page that joins them all: %v", err)
	}
	o := s.owners[pub("olga")]
	if o.closed || len(o.stmts) != 1 || len(o.live) != 5 || !o.dead[ids[0]] || !o.dead[ids[3]] {
		t.Fatalf("%d statements, %d live, %d dead", len(o.stmts), len(o.live), len(o.dead))
	}
	if got := r.ClosedOwners(); len(got) != 0 {
		t.Errorf("still closed: %v", got)
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
