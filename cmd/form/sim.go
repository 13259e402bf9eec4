package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/sim"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/page"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
	"github.com/formthefog/formation/store/whole"
)

func newSim(a *app) *cobra.Command {
	return group("sim", "simulate a swarm, in virtual time", newSimList(a), newSimRun(a), newSimReplay(a), newSimPlay())
}

func newSimList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "the scenarios", Args: noArgs(),
		RunE: func(*cobra.Command, []string) error {
			type line struct {
				Name  string `json:"name"`
				Nodes int    `json:"nodes"`
				About string `json:"about"`
			}
			all := []line{}
			for _, s := range sim.Library() {
				all = append(all, line{s.Name, s.Nodes, s.About})
			}
			return a.p.Answer(all, func(w io.Writer) {
				for _, l := range all {
					fmt.Fprintf(w, "%-20s %5d nodes  %s\n", l.Name, l.Nodes, l.About)
				}
			})
		},
	}
}

// simFlags are those of run and replay.
type simFlags struct {
	nodes int
	seed  uint64
	once  bool
	jsonl string // file to record to; "": none
	html  string // file to draw to; "": none
	span  time.Duration
	tier  string
	logs  string
	base  string
}

func (f *simFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.nodes, "nodes", 0, "how many nodes (0: as the scenario wants)")
	cmd.Flags().StringVar(&f.jsonl, "jsonl", "", "write what happens to this file, one JSON object a line (of several seeds the last)")
	cmd.Flags().StringVar(&f.html, "html", "", "draw what happens as a page of its own, to scrub through in a browser")
	cmd.Flags().StringVar(&f.tier, "tier", tierDES, "what carries it out: des (virtual time), live (real hosts in virtual time), proc (real daemons; needs root), or vm (real machines as well)")
	cmd.Flags().DurationVar(&f.span, "for", 0, "only the first so much of it (0: all)")
	cmd.Flags().StringVar(&f.logs, "logs", "", "folder for what the daemons of the tiers proc and vm log")
	cmd.Flags().StringVar(&f.base, "base", "", "CAR file with the base image that machines of the vm tier run")
	cmd.Flags().BoolVar(&f.once, "once", false, "do not run it a second time to see that it gives the same events")
}

// plan is what a scenario, by name or in a file, comes to by the flags.
func (f *simFlags) plan(cmd *cobra.Command, name string) (*scenario.Plan, error) {
	s, err := findScenario(name)
	if err != nil {
		return nil, err
	}
	if cmd.Flags().Changed("nodes") && (f.nodes < scenario.MinNodes || f.nodes > scenario.MaxNodes) {
		return nil, cli.Errorf(api.ExitUsage, "--nodes: %d, allowed are %d to %d", f.nodes, scenario.MinNodes, scenario.MaxNodes)
	}
	p, err := s.Expand(f.nodes, f.seed)
	if err != nil {
		return nil, cli.Errorf(api.ExitUsage, "%v", err)
	}
	switch {
	case f.span < 0:
		return nil, cli.Errorf(api.ExitUsage, "--for: %v", f.span)
	case f.span > p.End:
		return nil, cli.Errorf(api.ExitUsage, "--for: %v, the scenario lasts %v", f.span, p.End)
	case f.span > 0:
		p = p.Until(f.span)
	}
	return p, nil
}

// maxScenario is more than a scenario's file may have.
const maxScenario = 1 << 20

func findScenario(name string) (*scenario.Scenario, error) {
	if !strings.HasSuffix(name, ".yaml") {
		s, err := sim.Find(name)
		if err != nil {
			return nil, cli.Errorf(api.ExitNotFound, "%v", err).Hint("form sim list; or the name of a file that ends in .yaml")
		}
		return s, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, cli.Errorf(api.ExitNotFound, "%v", err)
	}
	defer func() { _ = f.Close() }() // only read
	raw, err := io.ReadAll(io.LimitReader(f, maxScenario))
	if err != nil {
		return nil, err
	}
	s, err := scenario.Parse(name, raw)
	if err != nil {
		return nil, cli.Errorf(api.ExitUsage, "%v", err)
	}
	return s, nil
}

func newSimRun(a *app) *cobra.Command {
	var f simFlags
	var seeds int
	var noShrink bool
	cmd := &cobra.Command{
		Use: "run SCENARIO", Short: "run a scenario",
		Long: `Runs a scenario over the decisions that formd makes, with a simulated network,
disks and virtual machines. The same scenario, nodes and seed give the same
events, and so the same hash: every run is made twice, to see that. It exits 1 when
something that must be true is not; then it looks for the fewest steps of the
schedule that break it, and says how to see them again. Interrupted, it says and
writes what there was until then, and exits 1.

With --tier live it runs over real hosts in virtual time instead: what formd has of
state and network, with no virtual machines. Such a run is made once, for it does not
repeat itself.

With --tier proc the daemons are real, in network namespaces that the run makes and
removes, with the driver that starts no VM, in real time: the same schedule for the
same seed, and no hash. It needs Linux, root, ip and nft, and formd (beside form, or
on PATH).

With --tier vm the daemons run real machines as well, under KVM or emulated, of the
base in the file that --base names (make build, scripts/base.sh: .cache/base.car).
Whole nodes go down with their machines, and what runs is seen by what the machines
write. It needs QEMU too.

SCENARIO is one of form sim list, or a file that ends in .yaml.`,
		Args: argsBetween(1, 1, "SCENARIO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("seed") {
				f.seed = rand.Uint64()
			}
			if seeds < 1 || seeds > maxSeeds {
				return cli.Errorf(api.ExitUsage, "--seeds: %d, allowed are 1 to %d", seeds, maxSeeds)
			}
			for range seeds {
				p, err := f.plan(cmd, args[0])
				if err != nil {
					return err
				}
				if err := a.simulate(cmd.Context(), p, &f, !noShrink); err != nil {
					return err
				}
				f.seed++
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "what chance gives (default: another every time)")
	cmd.Flags().IntVar(&seeds, "seeds", 1, "run so many seeds, from --seed on, up to the first that breaks something")
	cmd.Flags().BoolVar(&noShrink, "no-shrink", false, "do not look for the fewest steps that break it")
	return cmd
}

// maxSeeds bounds --seeds.
const maxSeeds = 1_000_000

func newSimReplay(a *app) *cobra.Command {
	var f simFlags
	var only string
	cmd := &cobra.Command{
		Use: "replay SCENARIO --seed SEED", Short: "run a seed of a scenario again, or some of its steps",
		Long: `Runs what form sim run has run, and says which steps there were, each at its time.
With --only it leaves out all others.`,
		Args: argsBetween(1, 1, "SCENARIO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("seed") {
				return cli.Errorf(api.ExitUsage, "replay needs --seed").Hint("form sim run says which")
			}
			p, err := f.plan(cmd, args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("only") {
				keep, err := stepsOf(only, len(p.Steps))
				if err != nil {
					return err
				}
				p = p.Only(keep)
			}
			for _, s := range p.Steps {
				a.p.Note("step %v", s)
			}
			return a.simulate(cmd.Context(), p, &f, false)
		},
	}
	f.add(cmd)
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "the seed")
	cmd.Flags().StringVar(&only, "only", "", "these steps and no others, by number: 3,7,12, or none")
	return cmd
}

// stepsOf reads which of so many steps to keep.
func stepsOf(only string, steps int) ([]int, error) {
	keep := []int{}
	if only == "none" {
		return keep, nil
	}
	for _, word := range strings.Split(only, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 0 || n >= steps {
			return nil, cli.Errorf(api.ExitUsage, "--only: %q, the steps are 0 to %d", word, steps-1).Hint("3,7,12, or none")
		}
		keep = append(keep, n)
	}
	slices.Sort(keep)
	return slices.Compact(keep), nil
}

// record writes what a run leaves behind.
func (f *simFlags) record(r *record.Recording) error {
	if f.jsonl != "" {
		if err := writeFile(f.jsonl, r.Write); err != nil {
			return err
		}
	}
	if f.html != "" {
		return writeFile(f.html, func(w io.Writer) error { return page.Write(w, r) })
	}
	return nil
}

// writeFile makes a file anew of what write gives, whole or not at all; what is there
// and is no file, such as a pipe, is written to.
func writeFile(name string, write func(io.Writer) error) error {
	if is, err := os.Stat(name); err == nil && !is.Mode().IsRegular() {
		out, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return cli.Errorf(api.ExitUsage, "%v", err)
		}
		return errors.Join(write(out), out.Close())
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := whole.Write(name, b.Bytes(), 0o644); err != nil {
		return cli.Errorf(api.ExitUsage, "%v", err)
	}
	return nil
}

// shrinkRuns bounds how often a schedule is run to shrink it.
const shrinkRuns = 300

func (a *app) runSim(ctx context.Context, p *scenario.Plan, f *simFlags, shrink bool) error {
	r := sim.Run(ctx, p, "")
	if err := f.record(r.Recording); err != nil {
		return err
	}
	if !f.once && !r.Cut {
		if again := sim.Run(ctx, p, ""); again.Cut {
			a.p.Note("its second run was cut short: not seen whether it gives the same events")
		} else {
			r.Compare(again)
		}
	}
	line := fmt.Sprintf("seed=%d nodes=%d steps=%d events=%d virtual=%v hash=%s", r.Seed, r.Nodes, r.Steps, r.Events, r.Virtual, r.Hash)
	if err := a.simulated(r, r.Cut, line, r.Notes, r.Bad); err != nil || len(r.Bad) == 0 {
		return cmp.Or(err, ctx.Err())
	}
	replay := r.Replay()
	if shrink && ctx.Err() == nil {
		replay = a.shrinkSim(ctx, p, r.Bad[0].Of, replay)
	}
	if f.span > 0 {
		replay += fmt.Sprintf(" --for %v", f.span)
	}
	return cli.Errorf(api.ExitFailed, "%s: %d broken", r.Scenario, len(r.Bad)).Hint("%s", replay)
}

// simulated tells what came of a run of any tier: r as --json has it, its figures on one
// line after what they come to, what is to be noted, what broke, and whether it was cut
// short.
func (a *app) simulated(r any, cut bool, line string, notes []string, bad []des.Broken) error {
	word := "ok"
	if cut {
		word = "cut"
	}
	if len(bad) > 0 {
		word = "failed"
	}
	err := a.p.Answer(r, func(w io.Writer) { fmt.Fprintln(w, word, line) })
	for _, n := range notes {
		a.p.Note("%s", n)
	}
	for _, b := range bad {
		a.p.Warn("%s", b)
	}
	return err
}

// shrinkSim looks for fewer steps that break the same, and says how to see them.
func (a *app) shrinkSim(ctx context.Context, p *scenario.Plan, of des.Invariant, replay string) string {
	a.p.Note("looking for the fewest of %d steps that break %s", len(p.Steps), of)
	if least := sim.Shrink(ctx, p, "", of, shrinkRuns); least != nil {
		return least.Replay()
	}
	return replay
}
