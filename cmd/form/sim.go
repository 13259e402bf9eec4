package main

import (
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/sim"
)

func newSim(a *app) *cobra.Command {
	return group("sim", "simulate a swarm, in virtual time", newSimList(a), newSimRun(a))
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
			for _, sc := range sim.Scenarios() {
				all = append(all, line{sc.Name, sc.Nodes, sc.About})
			}
			return a.p.Answer(all, func(w io.Writer) {
				for _, l := range all {
					fmt.Fprintf(w, "%-16s %4d nodes  %s\n", l.Name, l.Nodes, l.About)
				}
			})
		},
	}
}

func newSimRun(a *app) *cobra.Command {
	var nodes int
	var seed uint64
	cmd := &cobra.Command{
		Use: "run SCENARIO", Short: "run a scenario",
		Long: `Runs a scenario over the decisions that formd makes, with a simulated network,
disks and virtual machines. The same scenario, nodes and seed give the same
events, and so the same hash. It exits 1 when something that must be true is not,
and says how to see it again.`,
		Args: argsBetween(1, 1, "SCENARIO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			sc, ok := sim.Find(args[0])
			if !ok {
				return cli.Errorf(api.ExitNotFound, "no scenario %q", args[0]).Hint("form sim list")
			}
			if cmd.Flags().Changed("nodes") && (nodes < sim.MinNodes || nodes > sim.MaxNodes) {
				return cli.Errorf(api.ExitUsage, "--nodes: %d, allowed are %d to %d", nodes, sim.MinNodes, sim.MaxNodes)
			}
			if !cmd.Flags().Changed("seed") {
				seed = rand.Uint64()
			}
			return a.runSim(sim.Run(sc, nodes, seed))
		},
	}
	cmd.Flags().IntVar(&nodes, "nodes", 0, "how many nodes (0: as the scenario wants)")
	cmd.Flags().Uint64Var(&seed, "seed", 0, "what chance gives (default: another every time)")
	return cmd
}

func (a *app) runSim(r sim.Result) error {
	word := "ok"
	if len(r.Bad) > 0 {
		word = "failed"
	}
	err := a.p.Answer(r, func(w io.Writer) {
		fmt.Fprintf(w, "%s seed=%d nodes=%d events=%d virtual=%v hash=%s\n", word, r.Seed, r.Nodes, r.Events, r.Virtual, r.Hash)
	})
	for _, n := range r.Notes {
		a.p.Note("%s", n)
	}
	if err != nil || len(r.Bad) == 0 {
		return err
	}
	for _, b := range r.Bad {
		a.p.Warn("%s", b)
	}
	return cli.Errorf(api.ExitFailed, "%s: %d broken", r.Scenario, len(r.Bad)).Hint("%s", r.Replay())
}
