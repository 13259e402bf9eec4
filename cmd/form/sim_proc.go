package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/sim/live"
	"github.com/formthefog/formation/sim/proc"
	"github.com/formthefog/formation/sim/scenario"
)

// The tiers that form sim runs.
const (
	tierDES  = "des"
	tierLive = live.Tier
	tierProc = "proc"
	tierVM   = "vm"
)

// simulate has a tier carry a plan out.
func (a *app) simulate(ctx context.Context, p *scenario.Plan, f *simFlags, shrink bool) error {
	switch f.tier {
	case tierDES:
		return a.runSim(p, f, shrink)
	case tierLive:
		if f.jsonl != "" || f.html != "" {
			return cli.Errorf(api.ExitUsage, "--jsonl, --html: the %s tier does not record what happens", tierLive)
		}
		return a.runLive(ctx, p, f.span)
	case tierProc:
		if f.jsonl != "" || f.html != "" {
			return cli.Errorf(api.ExitUsage, "--jsonl, --html: the %s tier does not record what happens", tierProc).Hint("what daemons log: --logs DIR")
		}
		return a.runProc(ctx, p, f.logs)
	case tierVM:
		return cli.Errorf(api.ExitUsage, "real virtual machines run no scenario").
			Hint("what they are held to are the end-to-end tests: make e2e").
			Hint("the same with real daemons and no machines: --tier %s", tierProc)
	}
	return cli.Errorf(api.ExitUsage, "--tier: %q is none of %s, %s, %s", f.tier, tierDES, tierLive, tierProc)
}

// runProc runs a plan on real daemons.
func (a *app) runProc(ctx context.Context, p *scenario.Plan, logs string) error {
	if err := proc.Refuse(p); err != nil {
		return cli.Errorf(api.ExitUsage, "%v", err).Hint("--tier %s", tierDES)
	}
	formd, err := findFormd()
	if err != nil {
		return err
	}
	if logs != "" {
		if logs, err = filepath.Abs(logs); err != nil {
			return err
		}
		if err := os.MkdirAll(logs, 0o700); err != nil {
			return err
		}
	}
	r, err := proc.Run(ctx, proc.Config{Plan: p, Formd: []string{formd}, Logs: logs, Note: a.p.Note})
	switch {
	case errors.Is(err, proc.ErrUnable):
		return cli.Errorf(api.ExitNotAllowed, "%v", err).Hint("sudo form sim run %s --tier %s", p.Name, tierProc)
	case err != nil:
		return err
	}
	line := fmt.Sprintf("seed=%d nodes=%d steps=%d tier=%s real=%v acknowledged=%d unanswered=%d", r.Seed, r.Nodes, r.Steps, r.Tier, r.Real, r.Acknowledged, r.Unanswered)
	if err := a.simulated(r, line, r.Notes, r.Bad); err != nil || len(r.Bad) == 0 {
		return err
	}
	return cli.Errorf(api.ExitFailed, "%s: %d broken", r.Scenario, len(r.Bad)).
		Hint("the same schedule, which need not come to the same: form sim run %s --tier %s --nodes %d --seed %d", r.Scenario, r.Tier, r.Nodes, r.Seed)
}

// findFormd is the daemon beside this program, else the one on PATH.
func findFormd() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), "formd")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath("formd")
	if err != nil {
		return "", cli.Errorf(api.ExitNotFound, "there is no formd beside form, nor on PATH").Hint("make build")
	}
	return filepath.Abs(path)
}
