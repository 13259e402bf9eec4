package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/sim/live"
	"github.com/formthefog/formation/sim/scenario"
)

// Real hosts in virtual time need a bubble of testing/synctest, and that a test: which
// ends its process. So it runs in one of its own, a hidden verb of this program, which
// writes the result to liveResult.
const (
	liveVerb   = "play"
	liveResult = 3 // a file descriptor
	// maxLiveResult is more than a result may be.
	maxLiveResult = 1 << 20
)

// newSimPlay is the verb of the process for one run.
func newSimPlay() *cobra.Command {
	var f simFlags
	var only string
	cmd := &cobra.Command{
		Use: liveVerb + " SCENARIO", Short: "be the process of one run in tier live", Hidden: true, Args: argsBetween(1, 1, "SCENARIO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := f.plan(cmd, args[0])
			if err != nil {
				return err
			}
			keep, err := stepsOf(only, len(p.Steps))
			if err != nil {
				return err
			}
			p = p.Only(keep)
			out := os.NewFile(liveResult, "result")
			os.Args = os.Args[:1] // what is left is testing's
			all := func(string, string) (bool, error) { return true, nil }
			testing.Main(all, []testing.InternalTest{{Name: p.Name, F: func(t *testing.T) {
				if err := json.NewEncoder(out).Encode(live.Play(t, p)); err != nil {
					t.Error(err)
				}
			}}}, nil, nil)
			return errors.New("unreachable: testing has ended the process")
		},
	}
	cmd.Flags().IntVar(&f.nodes, "nodes", 0, "")
	cmd.Flags().Uint64Var(&f.seed, "seed", 0, "")
	cmd.Flags().DurationVar(&f.span, "for", 0, "")
	cmd.Flags().StringVar(&only, "only", "none", "")
	return cmd
}

// runLive runs a plan, up to span if that is not zero, over real hosts.
func (a *app) runLive(ctx context.Context, p *scenario.Plan, span time.Duration) error {
	if err := live.Refuses(p); err != nil {
		return cannot(p, err)
	}
	r, err := playLive(ctx, p, span)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("seed=%d nodes=%d steps=%d virtual=%v tier=%s", r.Seed, r.Nodes, r.Steps, r.Virtual, r.Tier)
	if err := a.simulated(r, false, line, r.Notes, r.Bad); err != nil || len(r.Bad) == 0 {
		return err
	}
	return cli.Errorf(api.ExitFailed, "%s: %d broken", r.Scenario, len(r.Bad)).Hint("another run of the seed need not break: hosts are real in this tier")
}

func playLive(ctx context.Context, p *scenario.Plan, span time.Duration) (*live.Result, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	result, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = result.Close() }() // only read
	keep := make([]string, len(p.Steps))
	for i, s := range p.Steps {
		keep[i] = strconv.Itoa(s.N)
	}
	c := exec.CommandContext(ctx, exe, "sim", liveVerb, p.Name,
		"--nodes", strconv.Itoa(p.Nodes), "--seed", strconv.FormatUint(p.Seed, 10),
		"--for", span.String(), "--only", cmp.Or(strings.Join(keep, ","), "none"))
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), "GOGC=400") // there is little but garbage
	c.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	err = c.Start()
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(result, maxLiveResult))
	if err = errors.Join(err, c.Wait()); err != nil {
		return nil, fmt.Errorf("the process of tier live: %w: %s", err, said.Bytes()[max(0, said.Len()-4096):])
	}
	r := new(live.Result)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("the process of tier live: %w", err)
	}
	return r, nil
}
