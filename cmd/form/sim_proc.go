package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

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
	tierProc = proc.Tier
	tierVM   = proc.TierVM
)

// simulate has a tier carry a plan out.
func (a *app) simulate(ctx context.Context, p *scenario.Plan, f *simFlags, shrink bool) error {
	switch f.tier {
	case tierDES:
		return a.runSim(ctx, p, f, shrink)
	case tierLive:
		return a.runLive(ctx, p, f)
	case tierProc:
		return a.runProc(ctx, p, f, "")
	case tierVM:
		if f.base == "" {
			return cli.Errorf(api.ExitUsage, "--tier %s needs the base that machines run: --base FILE.car", tierVM).
				Hint("in the source's folder: scripts/base.sh, and then --base .cache/base.car")
		}
		return a.runProc(ctx, p, f, f.base)
	}
	return cli.Errorf(api.ExitUsage, "--tier: %q is none of %s", f.tier, strings.Join(scenario.Tiers, ", "))
}

// able are the tiers that can carry a plan out.
func able(p *scenario.Plan) (tiers []string) {
	for _, t := range scenario.Tiers {
		var err error
		switch t {
		case tierDES:
			if len(p.Tiers) > 0 && !slices.Contains(p.Tiers, t) {
				continue
			}
		case tierLive:
			err = live.Refuses(p)
		default:
			err = proc.Refuse(p, t)
		}
		if err == nil {
			tiers = append(tiers, t)
		}
	}
	return tiers
}

// cannot is why a tier does not carry out a plan, and which would.
func cannot(p *scenario.Plan, why error) error {
	err := cli.Errorf(api.ExitUsage, "%v", why)
	for _, t := range able(p) {
		err = err.Hint("--tier %s can", t)
	}
	return err
}

// runProc runs a plan on real daemons, and with a base on real machines.
func (a *app) runProc(ctx context.Context, p *scenario.Plan, f *simFlags, base string) error {
	if err := proc.Refuse(p, f.tier); err != nil {
		return cannot(p, err)
	}
	logs := f.logs
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
	r, err := proc.Run(ctx, proc.Config{Plan: p, Formd: []string{formd}, Base: base, Logs: logs, Note: a.p.Note})
	switch {
	case errors.Is(err, proc.ErrUnable):
		return cli.Errorf(api.ExitNotAllowed, "%v", err).Hint("sudo form sim run %s --tier %s", p.Name, f.tier)
	case err != nil:
		return err
	}
	if err := f.record(r.Recording); err != nil {
		return err
	}
	line := fmt.Sprintf("seed=%d nodes=%d steps=%d tier=%s real=%v acknowledged=%d unanswered=%d", r.Seed, r.Nodes, r.Steps, r.Tier, r.Real, r.Acknowledged, r.Unanswered)
	if err := a.simulated(r, r.Cut, line, r.Notes, r.Bad); err != nil || len(r.Bad) == 0 {
		return cmp.Or(err, ctx.Err())
	}
	return cli.Errorf(api.ExitFailed, "%s: %d broken", r.Scenario, len(r.Bad)).
		Hint("the same schedule, which need not come to the same: %s", r.Replay())
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
