package sim

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/scenario"
)

// long says whether to run what takes many minutes of CPU, too.
var long = os.Getenv("FORMATION_LONG") != ""

// seeds is how many of each scenario are run, and mutantSeeds how many a mutant may
// survive.
func seeds() uint64 {
	if long {
		return 100
	}
	return 1
}

const mutantSeeds = 100

func expand(t *testing.T, s *scenario.Scenario, nodes int, seed uint64) *scenario.Plan {
	t.Helper()
	p, err := s.Expand(nodes, seed)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// again are scenarios that are run twice even where there is little time: between them
// they have every kind of event.
var again = []string{"byzantine", "chaos", "node-dies"}

// Every scenario runs, keeps its invariants, and repeats itself.
func TestScenarios(t *testing.T) {
	for _, s := range Library() {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			for seed := range seeds() {
				p := expand(t, s, 0, seed)
				r := Run(t.Context(), p, "")
				if long || slices.Contains(again, s.Name) {
					r.Compare(Run(t.Context(), p, ""))
				}
				for _, b := range r.Bad {
					t.Errorf("%s: %v", r.Replay(), b)
				}
				t.Logf("%s: steps=%d events=%d virtual=%v hash=%s\n\t%s", r.Replay(), r.Steps, r.Events, r.Virtual, r.Hash, strings.Join(r.Notes, "\n\t"))
			}
		})
	}
}

// What is shipped with a contract that counts voters has some, and it is kept.
func TestShippedContractsAreKept(t *testing.T) {
	for _, contract := range []string{"fence", "stop-minority"} {
		s := parsed(t, "about: it is shipped, and the swarm splits\nnodes: 7\nschedule: [{at: 2s, do: ship, replicas: 2, partition: "+contract+
			"}, {at: 60s, do: partition, node: serving}, {at: 150s, do: heal}]\nuntil: 200s\nexpect: {settle: 2m}\n")
		for seed := range uint64(3) {
			r := Run(t.Context(), expand(t, s, 0, seed), "")
			for _, b := range r.Bad {
				t.Errorf("%s, seed %d: %v", contract, seed, b)
			}
			if r.Steps != 3 {
				t.Errorf("%s, seed %d: %d of 3 steps", contract, seed, r.Steps)
			}
		}
	}
}

// Seeds that broke something once, each by a fault of the code or of the model.
func TestSeedsThatBroke(t *testing.T) {
	for _, c := range []struct {
		scenario string
		seed     uint64
		why      string
	}{
		{"soak", 2, "a VM was left for a day when its daemon ended between a deletion and its end"},
		{"slow-disk", 7, "a change was acknowledged that waited, in memory, for one before it"},
		{"laptop-sleep", 7, "who claimed a slot a moment ago was taken for who had served it"},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			s, err := Find(c.scenario)
			if err != nil {
				t.Fatal(err)
			}
			r := Run(t.Context(), expand(t, s, 0, c.seed), "")
			for _, b := range r.Bad {
				t.Errorf("%s (%s): %v", r.Replay(), c.why, b)
			}
		})
	}
}

// mutation is what a mutant breaks, in a scenario that expects it.
type mutation struct {
	mutant   des.Mutant
	scenario string
	breaks   des.Invariant
}

var mutants = []mutation{
	{des.NoMargin, "fence", des.FencedOnce},
	{des.VotesForgotten, "fence", des.FencedOnce},
	{des.TakeoverAtOnce, "fence", des.FencedOnce},
	{des.NoKeeper, "fence", des.FencedOnce},
	{des.NoVoters, "stop-minority", SideStops},
	{des.SurplusStays, "keep", Settles},
	{des.SurplusStays, "deleted-then-replayed", DeletedGone},
	{OpenToAll, "byzantine", OperatorsOnly},
	{des.NoResync, "laptop-sleep", des.Resynced},
	{des.NoResync, "laptop-sleep", Slept},
	{des.SignaturesUnchecked, "byzantine", des.Refused},
	{des.WakesAtOnce, "node-dies", des.PlanPure},
	{des.OverPromises, "repair-storm", des.PromisesFit},
	{des.TwoReplicas, "node-dies", des.OneReplica},
	{des.NeverYields, "keep", des.OneKeeper},
	{des.TakesNothing, "keep", SideServes},
	{des.TakesNothing, "node-dies", Settles},
	{des.DrainsAtOnce, "drain-third", Always},
	{des.NoPatience, "restart", Takeovers},
	{des.NoPatience, "restart", Moves},
	{des.NoBudget, "half-out-of-sight", Budget},
	{des.RefusesClaims, "node-dies", des.Believed},
	{des.StaleViews, "node-dies", des.ViewsEqual},
	{des.AckBeforeSync, "ship-and-kill", des.AckedKept},
	{des.SlowDetector, "node-dies", Deaths},
	{des.HastyDetector, "loss-and-stalls", Alive},
	{des.LossyFork, "node-dies", des.SameStatement},
	{des.NeverReunites, "keep", des.Connected},
	{des.RunsWithoutPack, "node-dies", des.PackBeforeRun},
	{des.ForgetsParts, "flash-crowd-pack", des.FetchedOnce},
	{des.RefusesUnknown, "upgrade-rolling", des.UnknownKept},
	{des.StripsUnknown, "upgrade-rolling", des.UnknownKept},
	{des.AsksNobody, "keep", Agrees},
	{des.HearsLate, "wan-19-regions", Delivery},
	{des.TellsTwice, "wan-19-regions", Sends},
	{des.OwnDice, "node-dies", SameHash},
	{des.IntoThePast, "node-dies", des.Engine},
	{NothingDone, "keep", Sometimes},
}

// What is broken by a mutant is noticed by the invariant that is there for it,
// within a hundred seeds, and shrinks to a few faults.
func TestMutantsAreNoticed(t *testing.T) {
	for _, c := range mutants {
		t.Run(string(c.mutant)+"/"+string(c.breaks), func(t *testing.T) {
			t.Parallel()
			s, err := Find(c.scenario)
			if err != nil {
				t.Fatal(err)
			}
			for seed := range uint64(mutantSeeds) {
				p := expand(t, s, 0, seed)
				if !runUntil(t.Context(), p, c.mutant, c.breaks).Broke(c.breaks) {
					continue
				}
				r := Shrink(t.Context(), p, c.mutant, c.breaks, shrinkRuns)
				if r == nil || len(r.Only) > few {
					continue
				}
				i := slices.IndexFunc(r.Bad, func(b des.Broken) bool { return b.Of == c.breaks })
				t.Logf("%s: %v", r.Replay(), r.Bad[i])
				return
			}
			t.Errorf("no seed below %d breaks %s by %d steps or fewer", mutantSeeds, c.breaks, few)
		})
	}
}

// soon ends once it has been asked so many times whether it has.
type soon struct {
	context.Context
	left int
}

func (c *soon) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// A run may be cut at any moment, in its beginning too, and says what there was.
func TestRunsAreCutAnywhere(t *testing.T) {
	s, err := Find("fence")
	if err != nil {
		t.Fatal(err)
	}
	for asked := range 100 {
		r := Run(&soon{t.Context(), asked}, expand(t, s, 0, 1), "")
		if end := r.Recording.Lines[len(r.Recording.Lines)-1].End; !r.Cut || !end.Cut || len(r.Bad) > 0 {
			t.Errorf("cut when asked for the %dth time: %v, recorded %+v, found %v", asked+1, r.Cut, end, r.Bad)
		}
	}
}

// A check that no mutant fails is none: there is one for each.
func TestEveryInvariantHasAMutant(t *testing.T) {
	named := 0
	for _, file := range []string{"expect.go", "des/invariant.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 || !strings.HasSuffix(types.ExprString(v.Type), "Invariant") {
				return true
			}
			named++
			if word := v.Values[0].(*ast.BasicLit).Value; !slices.ContainsFunc(mutants, func(m mutation) bool { return strconv.Quote(string(m.breaks)) == word }) {
				t.Errorf("%s: no mutant breaks %s", file, word)
			}
			return true
		})
	}
	if named < 30 {
		t.Errorf("only %d invariants were found", named)
	}
}

// shrinkRuns bounds how often a plan is run to shrink it, and few are the steps that
// are to be left then.
const (
	shrinkRuns = 100
	few        = 5
)

func TestEveryVerbIsDone(t *testing.T) {
	for _, v := range scenario.Verbs {
		if actions[v.Name] == nil {
			t.Errorf("nothing does %s", v.Name)
		}
	}
	if len(actions) != len(scenario.Verbs) {
		t.Errorf("%d actions, %d verbs", len(actions), len(scenario.Verbs))
	}
}
