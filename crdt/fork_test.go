package crdt

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// A fork is what a State would be that was told all that was told to it and, before
// it forked, to the one it came from; nothing that is told to one shows in another.
func TestForksAreApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, rapid.Bool().Draw(t, "withdraw"))
		all := []*grown{{State: w.state()}}
		steps := rapid.IntRange(len(w.raws), 6*len(w.raws)).Draw(t, "steps")
		for range steps {
			one := all[rapid.IntRange(0, len(all)-1).Draw(t, "who")]
			switch do := rapid.IntRange(0, 19).Draw(t, "do"); {
			case do < 16:
				at := one.next % len(w.raws) // most come in the order in which they were made
				if one.next++; do < 3 {
					at = rapid.IntRange(0, len(w.raws)-1).Draw(t, "what")
				}
				one.do(func(s *State) { _, _ = s.Apply(w.raws[at], time.Time{}) })
			case do == 16:
				key := pub(rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "node"))
				one.do(func(s *State) { s.Forget(key) })
			case do == 17:
				one.do(func(s *State) { s.View() })
			case len(all) < 6:
				f, err := one.Fork(NewModel())
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, &grown{State: f, steps: one.steps[:len(one.steps):len(one.steps)], next: one.next})
			}
		}
		for i, one := range all {
			one.same(t, w.state(), i)
		}
	})
}

// grown is a State and how it came to be as it is.
type grown struct {
	*State
	steps []func(*State)
	next  int // of the history
}

func (o *grown) do(step func(*State)) {
	step(o.State)
	o.steps = append(o.steps, step)
}

// same holds o to be what its steps make of an empty State.
func (o *grown) same(t *rapid.T, want *State, i int) {
	for _, step := range o.steps {
		step(want)
	}
	if got, want := render(o.View()), render(want.View()); got != want {
		t.Fatalf("fork %d has another view%s", i, diffLines(want, got))
	}
	for key, owner := range want.owners { // any order: each by itself
		for _, st := range owner.stmts { // any order: each by itself
			for _, d := range st.body.Dead {
				if got, want := o.View().Deleted(key, d.String()), want.View().Deleted(key, d.String()); got != want {
					t.Fatalf("fork %d: %s is deleted: %v, want %v", i, d, got, want)
				}
			}
		}
	}
	if digest(o.index().items) != digest(want.index().items) {
		t.Fatalf("fork %d holds other statements: %s", i, diffIndex(want, o.State))
	}
	var sum stmt.ID
	n := 0
	for id := range o.ids.all() {
		n++
		for b := range sum {
			sum[b] ^= id[b]
		}
	}
	if sum != o.Fingerprint() || sum != want.Fingerprint() || n != o.ids.len() {
		t.Fatalf("fork %d: the fingerprint or number of its %d IDs (%d) is wrong", i, n, o.ids.len())
	}
	if got, want := o.Pending(), want.Pending(); got != want {
		t.Fatalf("fork %d: %d statements are set aside, not %d", i, got, want)
	}
}

// A fork has all that a State is made of: what a View is made of too when it is made
// anew, though nothing of that has changed since.
func TestForksHaveAll(t *testing.T) {
	w := newWorld(t)
	a := w.author("olga", nil)
	gone, raws, err := a.Create(Spec{Name: "web", Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	dead, err := a.Delete(gone)
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	applyAll(s, append(append([][]byte{w.admit("olga", stmt.RoleOwner), w.admit("n1", stmt.RoleNode)}, raws...), dead...))
	f, err := s.Fork(NewModel())
	if err != nil {
		t.Fatal(err)
	}
	applyAll(f, [][]byte{w.node("n1", 1, 1, Node{})})
	if !f.View().Deleted(pub("olga"), gone) {
		t.Error("what was deleted before the fork is not known after it")
	}
	// Whoever adds a field says here whether a fork has it.
	notShared := []string{"collect", "news", "tellOmitted", "omitted", "tellDoubled", "doubled", "caught"}
	src, err := os.ReadFile("fork.go")
	if err != nil {
		t.Fatal(err)
	}
	for i := range reflect.TypeFor[State]().NumField() {
		name := reflect.TypeFor[State]().Field(i).Name
		set := strings.Contains(string(src), " "+name+": ") || strings.Contains(string(src), "\t"+name+": ")
		if !set && !slices.Contains(notShared, name) && !strings.HasPrefix(name, "dirty") {
			t.Errorf("Fork says nothing of State.%s", name)
		}
	}
}

// What a fork is told changes nothing in place that the other holds.
func TestForkedStaysAsItIs(t *testing.T) {
	w := newWorld(t)
	a := w.author("olga", [][]byte{w.admit("olga", stmt.RoleOwner)})
	var begin [][]byte
	said := func(raws [][]byte, err error) [][]byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return raws
	}
	web, raws, err := a.Create(Spec{Name: "web", Replicas: 2})
	begin = append(begin, said(raws, err)...)
	begin = append(begin, said(a.SetSecret(web, someSecret("one", 1)))...)
	begin = append(begin, w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode))
	for i, n := range []string{"n1", "n2"} {
		begin = append(begin, w.node(n, 1, 1, Node{}), w.claim(n, 1, 2, Claim{Instance: web, Owner: pub("olga"), Slot: i, Phase: ClaimRunning}, false))
	}
	begin = append([][]byte{w.raws[0]}, begin...)
	_, another, err := a.Create(Spec{Name: "db", Replicas: 1})
	for name, then := range map[string][][]byte{
		"another instance": said(another, err),
		"another secret":   said(a.SetSecret(web, someSecret("two", 2))),
		"a secret anew":    said(a.SetSecret(web, someSecret("one", 3))),
		"a change":         said(a.Set(web, func(s *Spec) { s.Replicas = 5 })),
		"a claim anew":     {w.claim("n1", 1, 3, Claim{Instance: web, Owner: pub("olga"), Phase: ClaimUnhealthy}, false)},
		"a claim gone":     {w.claim("n1", 1, 4, Claim{Instance: web, Owner: pub("olga"), Phase: ClaimRunning}, true)},
		"a revocation":     {w.member(stmt.MemberBody{Key: pub("n1"), Revoked: true})},
		"a deletion":       said(a.Delete(web)),
	} {
		s, want := w.state(), w.state()
		for _, one := range []*State{s, want} {
			applyAll(one, begin)
			one.Forget(pub("n2"))
		}
		f, err := s.Fork(NewModel())
		if err != nil {
			t.Fatal(err)
		}
		applyAll(f, then)
		if f.Fingerprint() == s.Fingerprint() {
			t.Errorf("%s: nothing new", name)
		}
		owners := func(s *State) int { return len(s.OwnerStatements(pub("olga"))) }
		if digest(s.reindex(nil).items) != digest(want.reindex(nil).items) || render(s.View()) != render(want.View()) || owners(s) != owners(want) {
			t.Errorf("%s shows in the State that was forked", name)
		}
	}
}

// layers are a map, however often they fork.
func TestLayersAreAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLayers[int, int]()
		ls, models := []*layers[int, int]{&l}, []map[int]int{{}}
		keys := rapid.SampledFrom([]int{8, 4 * maxLayer}).Draw(t, "keys")
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			i := rapid.IntRange(0, len(ls)-1).Draw(t, "which")
			l, m := ls[i], models[i]
			first := rapid.IntRange(0, keys-1).Draw(t, "first")
			many := rapid.IntRange(1, keys).Draw(t, "many")
			switch rapid.IntRange(0, 2).Draw(t, "do") {
			case 0:
				for k := first; k < min(keys, first+many); k++ {
					l.set(k, k+i)
					m[k] = k + i
				}
			case 1:
				for k := first; k < min(keys, first+many); k++ {
					l.delete(k)
					delete(m, k)
				}
			case 2:
				f, c := l.fork(), map[int]int{}
				for k, v := range m {
					c[k] = v
				}
				ls, models = append(ls, &f), append(models, c)
			}
		}
		for i, l := range ls {
			got := map[int]int{}
			for k, v := range l.all() {
				if _, twice := got[k]; twice {
					t.Fatalf("%d is there twice", k)
				}
				got[k] = v
			}
			if len(got) != len(models[i]) || l.len() != len(got) {
				t.Fatalf("%d entries, len %d, want %d", len(got), l.len(), len(models[i]))
			}
			for k, v := range models[i] {
				if got[k] != v || l.get(k) != v {
					t.Fatalf("%d is %d, %d, want %d", k, got[k], l.get(k), v)
				}
			}
		}
	})
}
