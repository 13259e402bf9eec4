package crdt

import (
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
		steps := rapid.IntRange(1, 3*len(w.raws)).Draw(t, "steps")
		for range steps {
			one := all[rapid.IntRange(0, len(all)-1).Draw(t, "who")]
			switch do := rapid.IntRange(0, 19).Draw(t, "do"); {
			case do < 16:
				raw := w.raws[rapid.IntRange(0, len(w.raws)-1).Draw(t, "what")]
				one.do(func(s *State) { _, _ = s.Apply(raw, time.Time{}) })
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
				all = append(all, &grown{State: f, steps: one.steps[:len(one.steps):len(one.steps)]})
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
