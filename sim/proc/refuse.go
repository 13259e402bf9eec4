package proc

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/formthefog/formation/sim/scenario"
)

// words that a scenario's "sometimes" can have here: what this tier counts.
var words = []string{"a machine outlived its daemon", "a write failed", "crash", "cut", "disk full", "heal", "kill", "partition", "restart", "slow", "stall", "suspend"}

// Refuse says what of a plan a tier of this package cannot do or look at, each by its
// name; nil: it can do all of it.
func Refuse(p *scenario.Plan, tier string) error {
	var cannot []string
	no := func(is bool, format string, args ...any) {
		if word := fmt.Sprintf(format, args...); is && !slices.Contains(cannot, word) {
			cannot = append(cannot, word)
		}
	}
	no(len(p.Tiers) > 0 && !slices.Contains(p.Tiers, tier), "a scenario that is for %s alone", strings.Join(p.Tiers, ", "))
	no(p.Nodes > MaxNodes, "%d nodes (at most %d)", p.Nodes, MaxNodes)
	if tier == TierVM {
		n := machines(p)
		no(n > MaxMachines, "%d machines (at most %d)", n, MaxMachines)
	}
	no(p.Drift != 0, "drift")
	no(p.Domains != 0, "domains")
	no(p.Scenario.Liars > 0, "liars")
	no(p.Scenario.Newcomers > 0, "newcomers")
	no(p.Workload.Changes != scenario.Span{}, "workload.changes")
	e := p.Expect
	no(e.Deaths > 0, "expect.deaths")
	no(e.Moves != "", "expect.moves")
	no(e.Takeovers != "", "expect.takeovers")
	no(e.Budget, "expect.takeover-budget")
	no(e.Alive, "expect.no-false-deaths")
	no(e.Sides > 0, "expect.side-serves")
	no(e.Stops > 0, "expect.side-stops")
	no(e.Always, "expect.served-always")
	no(e.Slept, "expect.sleepers-take-nothing")
	no(e.Delivery > 0, "expect.delivery-p99")
	no(e.Sends > 0, "expect.sends")
	for _, w := range p.Sometimes {
		no(!slices.Contains(words, w), "sometimes: %s", w)
	}
	for _, s := range p.Steps {
		no(!slices.Contains(verbs, s.Do) || tier == TierVM && s.Do == "disk-full", "%s", s.Do)
		no(s.Kind == "machine" && tier != TierVM, "%s of a machine", s.Do)
		no(s.Operators != "", "%s to some operators", s.Do)
		no(s.PackMiB != 0, "%s of a pack of a size", s.Do)
		no(s.Node == scenario.Clogged, "node: clogged")
	}
	if len(cannot) == 0 {
		return nil
	}
	return fmt.Errorf("scenario %s: the %s tier cannot do: %s", p.Name, tier, strings.Join(cannot, "; "))
}

// mostDrawn is the most replicas of what a step ships or scales without a number.
const mostDrawn = 3

// machines is how many a plan may come to: every step that ships or scales with as
// many as it says, or may draw.
func machines(p *scenario.Plan) int {
	n := p.Workload.Instances.Of(p.Nodes) * p.Workload.Replicas
	for _, s := range p.Steps {
		if s.Do == "ship" || s.Do == "scale" {
			n += cmp.Or(s.Replicas, mostDrawn)
		}
	}
	return n
}

// verbs that this tier carries out, by name.
var verbs = []string{
	"bounce", "change", "crash", "cut", "delete", "disk-full", "drain", "heal", "isolate", "kill", "loss", "partition",
	"scale", "ship", "slow", "stall", "start", "suspend", "undrain",
}
