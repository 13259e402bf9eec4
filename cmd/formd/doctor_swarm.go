package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// Nothing of these checks fails the node: who signs instances could choose what
// every node's doctor says.

// swarmChecks looks at what owners have signed, by what this node knows; it must
// have synchronised.
func swarmChecks(w plan.World, closed []stmt.Key) (out []api.Check) {
	if list := w.Electorates(); len(list) > 0 {
		out = append(out, votersCheck(list))
	}
	if list := w.Overruns(); len(list) > 0 {
		out = append(out, quotaCheck(list))
	}
	if len(closed) > 0 {
		out = append(out, closedCheck(closed))
	}
	return out
}

// votersCheck says which instance lacks voters most: first those that no majority
// is left of, then those with the most away.
func votersCheck(list []plan.Electorate) api.Check {
	var lacking []plan.Electorate
	for _, e := range list {
		if e.Lost() || len(e.Dead)+len(e.Gone) > 0 {
			lacking = append(lacking, e)
		}
	}
	if len(lacking) == 0 {
		return api.Check{Name: "voters", State: "ok", Detail: "the voters of " + counted(len(list), "instance") + " are there"}
	}
	rank := func(e plan.Electorate) int {
		if e.Lost() {
			return -1
		}
		return 0
	}
	e := slices.MinFunc(lacking, func(a, b plan.Electorate) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(len(b.Dead)+len(b.Gone), len(a.Dead)+len(a.Gone)))
	})
	c := api.Check{Name: "voters", State: "warn"}
	replace := "its owner signs others: form manage update " + e.Spec.ID + " --voters auto"
	if len(e.Spec.Voters) == 0 {
		c.Detail, c.Fix = fmt.Sprintf("%s (%s) has no voters, so its contract %s lets nothing run", e.Spec.Name, e.Spec.ID, e.Spec.Partition), replace
	} else {
		var parts []string
		for _, p := range []struct {
			what string
			keys []stmt.Key
		}{{"dead", e.Dead}, {"gone from the network", e.Gone}} {
			if len(p.keys) > 0 {
				parts = append(parts, p.what+": "+someKeys(p.keys))
			}
		}
		c.Detail = fmt.Sprintf("%s (%s) lacks %d of %d voters (%s)", e.Spec.Name, e.Spec.ID, len(e.Dead)+len(e.Gone), len(e.Spec.Voters), strings.Join(parts, "; "))
		c.Fix = "bring them back, or when they are away for good " + replace
		if len(e.Dead) == 0 {
			c.Fix = replace
		}
		if e.Lost() {
			c.Detail += ": no majority is left here, and nothing of it runs without one"
		}
	}
	if n := len(lacking) - 1; n > 0 {
		c.Detail += fmt.Sprintf("; voters are away of %s too", counted(n, "other instance"))
	}
	return c
}

func quotaCheck(list []plan.Overrun) api.Check {
	o := slices.MaxFunc(list, func(a, b plan.Overrun) int { return cmp.Compare(a.Over, b.Over) })
	c := api.Check{Name: "quotas", State: "warn"}
	c.Detail = fmt.Sprintf("%d of %s of owner %s may not run as they are signed: %s", o.Over, counted(o.All, "replica"), o.Owner, o.Why)
	if n := len(list) - 1; n > 0 {
		c.Detail += fmt.Sprintf("; over quota too: %s", counted(n, "other owner"))
	}
	c.Fix = "the owner deletes or shrinks something (form manage delete, scale, update), or joins by a larger invite: form net invite --max-replicas N and the like, on a node with the root key"
	return c
}

func closedCheck(list []stmt.Key) api.Check {
	c := api.Check{Name: "closed owners", State: "warn"}
	c.Detail = fmt.Sprintf("owner %s has signed more owner statements than are kept, so none of its instances and devices counts", list[0])
	if n := len(list) - 1; n > 0 {
		c.Detail += fmt.Sprintf("; closed too: %s", counted(n, "other owner"))
	}
	c.Fix = "it ships something new (form ship --name NAME), which says in one statement what many said; what else signs with its key must stop"
	return c
}

// someKeys names at most three.
func someKeys(keys []stmt.Key) string {
	var words []string
	for _, k := range keys[:min(len(keys), 3)] {
		words = append(words, k.String())
	}
	if n := len(keys) - len(words); n > 0 {
		words = append(words, fmt.Sprintf("%d more", n))
	}
	return strings.Join(words, ", ")
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
