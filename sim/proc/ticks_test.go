package proc

import (
	"slices"
	"testing"
	"time"
)

// Ticks become spans; spans of two nodes that overlap are an instance that ran twice,
// however one lies in the other, and no other instance's matter.
func TestTicks(t *testing.T) {
	zero := time.Unix(1000, 0)
	at := func(s float64) time.Time { return zero.Add(time.Duration(s * float64(time.Second))) }
	ticks := func(all ...[4]float64) *Ticks { // node, instance, from, to: a tick each second
		tk := &Ticks{Pause: 1500 * time.Millisecond}
		for _, s := range all {
			for x := s[2]; x <= s[3]; x++ {
				tk.Ticked(int(s[0]), string(rune('a'+int(s[1]))), 0, at(x-0.1), at(x))
			}
		}
		return tk
	}
	for _, c := range []struct {
		name string
		of   *Ticks
		want []string
	}{
		{"one after the other", ticks([4]float64{0, 0, 1, 5}, [4]float64{1, 0, 6, 9}), nil},
		{"a pause on one node", ticks([4]float64{0, 0, 1, 5}, [4]float64{0, 0, 9, 12}), nil},
		{"another instance", ticks([4]float64{0, 0, 1, 5}, [4]float64{1, 1, 3, 9}), nil},
		{"the next begins before the end", ticks([4]float64{0, 0, 1, 5}, [4]float64{1, 0, 4, 9}), []string{"it ran on n0 and n1 at once for 1.1s"}},
		{"one within the other", ticks([4]float64{0, 0, 1, 9}, [4]float64{1, 0, 4, 5}), []string{"it ran on n0 and n1 at once for 1.1s"}},
		{"the third by the first", ticks([4]float64{0, 0, 1, 9}, [4]float64{0, 0, 1, 2}, [4]float64{2, 0, 8, 9}), []string{"it ran on n0 and n2 at once for 1.1s"}},
	} {
		if got := c.of.Twice("a"); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	woke := ticks([4]float64{0, 0, 1, 5}, [4]float64{1, 0, 8, 20}, [4]float64{0, 0, 12, 12})
	if twice := woke.Twice("a"); len(twice) != 1 {
		t.Fatal(twice)
	}
	if d := woke.Forgive(0, at(11.5), at(13.5)); d != 100*time.Millisecond || len(woke.Twice("a")) != 0 {
		t.Errorf("forgiven %v, left %v", d, woke.Twice("a"))
	}
	if !woke.Since(1, at(19)) || woke.Since(0, at(6)) {
		t.Error("it is not the last node to run that has ticked last")
	}
}
