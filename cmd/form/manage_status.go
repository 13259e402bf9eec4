package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
)

// pollEvery is how often state is asked for while waiting. The state arrives at
// the asked node by gossip, so asking faster shows nothing sooner.
const pollEvery = 500 * time.Millisecond

type statusOptions struct{ watch bool }

func newGetStatus(a *app) *cobra.Command {
	var o statusOptions
	c := &cobra.Command{
		Use: "status INSTANCE|CID", Short: "PENDING, SUCCESS or FAILURE { reason: … }",
		Long: `Prints the status of an instance, by its ID or name, or of what runs a pack, by
the pack's CID: one instance's word, or "ID STATUS" lines when several of yours
run it. A printed status exits 0, FAILURE too. --watch follows until SUCCESS or
FAILURE, and exits 1 on FAILURE.`,
		Args: argsBetween(1, 1, "one INSTANCE or CID"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runGetStatus(cmd.Context(), args[0], o) },
	}
	c.Flags().BoolVarP(&o.watch, "watch", "w", false, "follow until it is decided; exit 1 on FAILURE")
	return c
}

// newStatusShort is `form status [INSTANCE]`: of the swarm without an argument.
func newStatusShort(a *app) *cobra.Command {
	var o statusOptions
	c := &cobra.Command{
		Use: "status [INSTANCE|CID]", Short: "status of an instance, or of the swarm",
		Args: argsBetween(0, 1, "at most one INSTANCE or CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.runSwarmStatus(cmd.Context())
			}
			return a.runGetStatus(cmd.Context(), args[0], o)
		},
	}
	c.Flags().BoolVarP(&o.watch, "watch", "w", false, "follow until it is decided; exit 1 on FAILURE")
	return c
}

func (a *app) runGetStatus(ctx context.Context, arg string, o statusOptions) (err error) {
	c, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	list, err := a.statusOf(ctx, c, arg)
	if err != nil {
		return err
	}
	if o.watch {
		if list, err = a.watchStatus(ctx, c, arg, list); err != nil {
			return err
		}
	}
	_, err = cid.Decode(arg)
	if err := a.printStatus(list, err == nil); err != nil || !o.watch {
		return err
	}
	for _, i := range list {
		if i.Status == api.StatusFailure {
			return cli.ExitStatus(api.ExitFailed)
		}
	}
	return nil
}

// statusOf is the caller's instances that arg means: one by name or ID, all
// that run it by CID.
func (a *app) statusOf(ctx context.Context, c *swarm.Conn, arg string) ([]api.Instance, error) {
	if _, err := cid.Decode(arg); err != nil {
		h, err := wholeInstance(arg)
		if err != nil {
			return nil, err
		}
		i, err := a.findWhole(ctx, c, h)
		return []api.Instance{i}, err
	}
	owner, err := a.owner()
	if err != nil {
		return nil, err
	}
	all, err := c.API().Instances(ctx, &owner)
	if err != nil {
		return nil, err
	}
	var list []api.Instance
	for _, i := range all {
		if i.Pack == arg {
			list = append(list, i)
		}
	}
	if len(list) == 0 {
		return nil, cli.Errorf(api.ExitNotFound, "none of your instances runs pack %s", arg).
			Hint("ship it: form ship %s", arg).Hint("what runs: form ls")
	}
	return list, nil
}

// printStatus answers for instances: with --json those of a pack are a list,
// however many they are, and one that was named is an object.
func (a *app) printStatus(list []api.Instance, ofPack bool) error {
	type status struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Pack   string `json:"pack"`
		Status string `json:"status"`
		Reason string `json:"reason"`
	}
	out := make([]status, 0, len(list))
	for _, i := range list {
		out = append(out, status{i.ID, i.Name, i.Pack, i.Status, i.Reason})
	}
	var v any = out
	if !ofPack {
		v = out[0]
	}
	return a.p.Answer(v, func(w io.Writer) {
		for _, i := range list {
			if len(list) > 1 {
				fmt.Fprintf(w, "%s ", i.ID)
			}
			fmt.Fprintln(w, statusText(i))
		}
	})
}

// watchStatus follows until every instance is decided.
func (a *app) watchStatus(ctx context.Context, c *swarm.Conn, arg string, list []api.Instance) ([]api.Instance, error) {
	task := a.p.Start("waiting")
	defer task.Done()
	said := ""
	err := poll(ctx, func() (bool, error) {
		var err error
		if list, err = a.statusOf(ctx, c, arg); err != nil {
			return false, err
		}
		decided := true
		for _, i := range list {
			decided = decided && i.Status != api.StatusPending
			if line := progressLine(i); line != said {
				said = line
				task.Title(line)
				if !a.p.Terminal() {
					a.p.Note("%s", line)
				}
			}
		}
		return decided, nil
	})
	return list, err
}

// poll calls f until it says done, fails, or ctx ends.
func poll(ctx context.Context, f func() (done bool, err error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// progressLine is one line on how far the replicas are.
func progressLine(i api.Instance) string {
	line := fmt.Sprintf("%s: %s, %s ready", i.Name, i.Status, readiness(i))
	for _, r := range i.Replicas {
		if !r.Ready {
			line += fmt.Sprintf("; %d %s", r.Slot, r.Phase)
		}
	}
	if i.Reason != "" {
		line += " (" + i.Reason + ")"
	}
	return line
}
