package place

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// racked draws a fleet whose nodes share domains by label, by operator, or not.
func racked(t *rapid.T) []Candidate {
	cands := fleet(rapid.IntRange(1, 20).Draw(t, "nodes"), func(int) uint64 { return rapid.Uint64Range(1, 64).Draw(t, "GiB") << 30 })
	for i := range cands {
		switch d := rapid.IntRange(0, 6).Draw(t, "domain"); {
		case d < 4:
			cands[i].Labels = map[string]string{DomainLabel: fmt.Sprint("rack-", d)}
		case d == 4:
			cands[i].Operator = key(900)
		}
	}
	return cands
}

func domains(cands []Candidate) map[stmt.Key]Domain {
	out := map[stmt.Key]Domain{}
	for _, c := range cands {
		out[c.Key] = DomainOf(c)
	}
	return out
}

// Of the nodes wanted, no domain has two more than another that has a node left;
// within a domain the better draw is wanted first; the order of the view does
// not matter.
func TestReplicasSpreadOverDomains(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cands := racked(t)
		s := spec(rapid.IntRange(0, 1000).Draw(t, "instance"), rapid.IntRange(1, 8).Draw(t, "replicas"))
		of, order := domains(cands), Order(s, cands)
		wanted, left := map[Domain]int{}, map[Domain]int{}
		for i, k := range order {
			if i < s.Replicas {
				wanted[of[k]]++
			} else {
				left[of[k]]++
			}
		}
		for a, n := range wanted {
			for b := range left {
				if n > wanted[b]+1 {
					t.Fatalf("%v has %d of %d replicas and %v, with %d nodes left, %d", a, n, s.Replicas, b, left[b], wanted[b])
				}
			}
		}
		for _, d := range of {
			var got, want []stmt.Key
			for _, k := range order {
				if of[k] == d {
					got = append(got, k)
				}
			}
			for _, n := range draws(s, cands) {
				if n.domain == d {
					want = append(want, n.key)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("of %v come %v, drew %v", d, got, want)
			}
		}
		shuffled := slices.Clone(cands)
		rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Shuffle(len(cands), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		if got := Order(s, shuffled); !slices.Equal(got, order) {
			t.Fatalf("another order of the view gives %v, want %v", got, order)
		}
	})
}

// A node that leaves, or changes its weight or domain away, takes no other node's
// replica along; one that joins takes at most one.
func TestDomainsMoveNoMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cands := racked(t)
		s := spec(rapid.IntRange(0, 1000).Draw(t, "instance"), rapid.IntRange(1, 8).Draw(t, "replicas"))
		gone := cands[rapid.IntRange(0, len(cands)-1).Draw(t, "gone")].Key
		before, after := Order(s, cands), Order(s, without(cands, gone))
		for i, k := range before {
			if at := slices.Index(after, k); k != gone && at > i {
				t.Fatalf("%v falls from place %d to %d when %v leaves: %v, then %v", k, i, at, gone, before, after)
			}
		}
		wanted := before[:min(s.Replicas, len(before))]
		moved := 0
		for _, k := range after[:min(s.Replicas, len(after))] {
			if !slices.Contains(wanted, k) {
				moved++
			}
		}
		if lost := slices.Contains(wanted, gone); moved > 1 || moved == 1 && !lost {
			t.Fatalf("%d new nodes are wanted when %v leaves: %v, then %v", moved, gone, before, after)
		}
	})
}

// Where all nodes are of one domain nothing changes: the order is the draw.
func TestOneDomainIsTheDraw(t *testing.T) {
	for name, in := range map[string]func(*Candidate){
		"none":     func(*Candidate) {},
		"label":    func(c *Candidate) { c.Labels = map[string]string{DomainLabel: "home"} },
		"operator": func(c *Candidate) { c.Operator = key(900) },
	} {
		cands := fleet(12, func(i int) uint64 { return uint64(i+1) << 32 })
		for i := range cands {
			in(&cands[i])
		}
		for i := range 50 {
			var want []stmt.Key
			for _, d := range draws(spec(i, 3), cands) {
				want = append(want, d.key)
			}
			if got := Order(spec(i, 3), cands); !slices.Equal(got, want) {
				t.Fatalf("%s, instance %d: %v, want %v", name, i, got, want)
			}
		}
	}
}

// A vacancy goes to a domain that serves none of the other slots, although the
// holders are not those that the order wants.
func TestRankSparesDomainsInUse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cands := racked(t)
		of := domains(cands)
		r := rapid.IntRange(2, 5).Draw(t, "replicas")
		s := spec(rapid.IntRange(0, 1000).Draw(t, "instance"), r)
		held, used := map[stmt.Key]int{}, map[Domain]int{}
		for slot := 1; slot < r && slot < len(cands); slot++ {
			held[cands[slot].Key] = slot
			used[of[cands[slot].Key]]++
		}
		least := -1
		for _, c := range cands {
			if _, holds := held[c.Key]; !holds && (least < 0 || used[of[c.Key]] < least) {
				least = used[of[c.Key]]
			}
		}
		first := Rank(s, 0, cands, held)[0]
		if _, holds := held[first]; holds || used[of[first]] != least {
			t.Fatalf("slot 0 goes to %v of %v with %d replicas, another has %d", first, of[first], used[of[first]], least)
		}
	})
}

func TestDomainOf(t *testing.T) {
	label := map[string]string{DomainLabel: "rack-1"}
	for _, tc := range []struct {
		c    Candidate
		want Domain
		text string
	}{
		{Candidate{Key: key(1), Operator: key(2), Labels: label}, Domain{Name: "rack-1"}, "rack-1"},
		{Candidate{Key: key(1), Operator: key(2)}, Domain{Key: key(2)}, key(2).String()},
		{Candidate{Key: key(1), Labels: map[string]string{DomainLabel: ""}}, Domain{Key: key(1)}, key(1).String()},
	} {
		if got := DomainOf(tc.c); got != tc.want || got.String() != tc.text {
			t.Errorf("%+v: %+v (%s), want %+v", tc.c, got, got, tc.want)
		}
	}
}
