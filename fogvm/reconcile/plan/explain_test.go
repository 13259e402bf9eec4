package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// explain renders what a node says of an instance.
func (c *cluster) explain(node int, id string) string {
	n := c.node(node)
	w := c.world(n)
	spec := c.specs[id]
	e := Explain(Input{
		Now: epoch + c.now, Self: n.key, World: w, Timers: n.timers, Accepts: n.accepted, Hysteresis: c.hysteresis,
	}, &spec)
	var b strings.Builder
	fmt.Fprintf(&b, "%v, n%d of %s:\n", c.now, node, id)
	for _, s := range e.Slots {
		fmt.Fprintf(&b, "  %d  keeper ", s.Slot)
		if s.Keeper.IsZero() {
			b.WriteString("nobody")
		} else {
			b.WriteString(c.name(s.Keeper))
		}
		b.WriteString(", rank")
		for _, k := range s.Rank {
			b.WriteString(" " + c.name(k))
		}
		if s.Due > 0 {
			fmt.Fprintf(&b, ", due in %v", s.Due-e.Now)
		}
		b.WriteString("\n")
		for _, why := range s.Why {
			b.WriteString("     " + why + "\n")
		}
	}
	for _, j := range e.Nodes {
		fmt.Fprintf(&b, "  %s  weight %d domain %q %s\n", c.name(j.Node), j.Weight, j.Domain, j.Reason)
	}
	fmt.Fprintf(&b, "  %d takeovers, %d MiB, %d moves in %v\n", e.Budget.Takeovers, e.Budget.RepairBytes>>20, e.Budget.Moves, e.Budget.Window)
	out := b.String()
	for _, o := range c.nodes {
		out = strings.ReplaceAll(out, o.key.String(), c.name(o.key))
	}
	return out
}

// TestExplain: what each situation is told as.
func TestExplain(t *testing.T) {
	for _, sc := range []struct {
		name  string
		nodes int
		run   func(c *cluster) string
	}{
		{"explain-death", 4, func(c *cluster) string {
			c.node(4).reg.Labels = map[string]string{place.DomainLabel: "attic"}
			c.ship("wiki", 2, "p1")
			c.run(10 * time.Second)
			victim := c.holder("wiki", 0)
			c.kill(victim, true)
			c.run(8 * time.Second)
			before := c.explain(1, "wiki")
			c.run(15 * time.Second)
			return before + c.explain(1, "wiki")
		}},
		{"explain-hysteresis", 2, func(c *cluster) string {
			c.ship("wiki", 2, "p1")
			c.run(10 * time.Second)
			c.add(3)
			c.run(time.Minute)
			out := c.explain(3, "wiki") + c.explain(1, "wiki")
			c.run(242 * time.Second)
			return out + c.explain(3, "wiki")
		}},
		{"explain-drain", 4, func(c *cluster) string {
			c.ship("mail", 2, "p1")
			c.ship("chat", 2, "p1")
			c.run(10 * time.Second)
			c.node(c.holder("chat", 0)).reg.Draining = true
			c.run(time.Second)
			return c.explain(2, "chat") + c.explain(2, "mail")
		}},
		{"explain-refusals", 2, func(c *cluster) string {
			c.quota = &stmt.Quota{Replicas: 1}
			c.ship("wiki", 2, "p1")
			c.run(10 * time.Second)
			out := c.explain(1, "wiki")
			c.quota = nil
			c.change("wiki", "wants the moon", func(s *crdt.Spec) { s.Region = "moon" })
			c.run(time.Second)
			out += c.explain(1, "wiki")
			c.change("wiki", "stops", func(s *crdt.Spec) { s.Region, s.Phase = "", crdt.PhaseStopped })
			c.run(2 * time.Second)
			return out + c.explain(1, "wiki")
		}},
		{"explain-failures", 2, func(c *cluster) string {
			c.fails["p1"] = true
			c.ship("wiki", 1, "p1")
			c.run(15 * time.Second)
			return c.explain(1, "wiki")
		}},
	} {
		t.Run(sc.name, func(t *testing.T) {
			golden(t, sc.name, sc.run(newCluster(sc.nodes)))
		})
	}
}

// What is told decides nothing: Plan says the same before and after.
func TestExplainChangesNothing(t *testing.T) {
	c := newCluster(4)
	c.ship("wiki", 2, "p1")
	c.run(10 * time.Second)
	c.kill(c.holder("wiki", 0), true)
	c.run(5 * time.Second)
	for _, n := range c.nodes {
		in := Input{Now: epoch + c.now, Self: n.key, World: c.world(n), Timers: n.timers}
		before := fmt.Sprint(Plan(in))
		spec := c.specs["wiki"]
		first := fmt.Sprint(Explain(in, &spec))
		if again := fmt.Sprint(Explain(in, &spec)); again != first {
			t.Errorf("n%d says\n%s\nthen\n%s", n.id, first, again)
		}
		if after := fmt.Sprint(Plan(in)); after != before {
			t.Errorf("n%d decides\n%s\nafter it has explained\n%s", n.id, before, after)
		}
	}
}
