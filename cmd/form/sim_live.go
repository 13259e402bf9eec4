package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/sim/live"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

// Real hosts in virtual time need a bubble of testing/synctest, and that a test: which
// ends its process. So it runs in one of its own, a hidden verb of this program, which
// writes a line with the result to liveResult, and behind it the recording. It is to
// end when its standard input does: nothing else that a terminal says is for it.
const (
	liveVerb   = "play"
	liveResult = 3 // a file descriptor
	// maxLiveResult is more than a result may be.
	maxLiveResult = 1 << 20
	// liveEnd is more than a run takes to end once it is to.
	liveEnd = time.Minute
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
			ctx := untilEOF(cmd.Context(), cmd.InOrStdin())
			os.Args = os.Args[:1] // what is left is testing's
			all := func(string, string) (bool, error) { return true, nil }
			testing.Main(all, []testing.InternalTest{{Name: p.Name, F: func(t *testing.T) {
				r := live.Play(ctx, t, p)
				if err := errors.Join(json.NewEncoder(out).Encode(r), r.Recording.Write(out)); err != nil {
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

// untilEOF is a context that ends with what there is to read as well, and liveEnd
// later the process does, whatever it is at. Interrupts are ignored from here on.
func untilEOF(ctx context.Context, in io.Reader) context.Context {
	signal.Ignore(os.Interrupt)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, in) // that it cannot be read any more is its end
		cancel()
		time.AfterFunc(liveEnd, func() { os.Exit(int(api.ExitFailed)) })
	}()
	return ctx
}

// runLive runs a plan over real hosts.
func (a *app) runLive(ctx context.Context, p *scenario.Plan, f *simFlags) error {
	if err := live.Refuses(p); err != nil {
		return cannot(p, err)
	}
	r, err := playLive(ctx, p, f.span)
	if err != nil {
		return err
	}
	if err := f.record(r.Recording); err != nil {
		return err
	}
	line := fmt.Sprintf("seed=%d nodes=%d steps=%d virtual=%v tier=%s", r.Seed, r.Nodes, r.Steps, r.Virtual, r.Tier)
	if err := a.simulated(r, r.Cut, line, r.Notes, r.Bad); err != nil || len(r.Bad) == 0 {
		return cmp.Or(err, ctx.Err())
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
	c := exec.Command(exe, "sim", liveVerb, p.Name,
		"--nodes", strconv.Itoa(p.Nodes), "--seed", strconv.FormatUint(p.Seed, 10),
		"--for", span.String(), "--only", cmp.Or(strings.Join(keep, ","), "none"))
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), "GOGC=400") // there is little but garbage
	c.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	in, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = in.Close() })() // Wait closes it as well
	r, rerr := readLive(result)
	if err = c.Wait(); err != nil {
		return nil, fmt.Errorf("the process of tier live: %w: %s", err, said.Bytes()[max(0, said.Len()-4096):])
	}
	if rerr != nil {
		return nil, fmt.Errorf("the process of tier live: %w", rerr)
	}
	return r, nil
}

// readLive reads what such a process writes, to its end.
func readLive(from io.Reader) (*live.Result, error) {
	in := bufio.NewReaderSize(from, maxLiveResult)
	raw, err := in.ReadSlice('\n')
	if err == nil {
		r := new(live.Result)
		if err = json.Unmarshal(raw, r); err == nil {
			if r.Recording, err = record.Read(in); err == nil {
				return r, nil
			}
		}
	}
	_, cerr := io.Copy(io.Discard, in) // so that it is not kept from ending
	return nil, errors.Join(err, cerr)
}
