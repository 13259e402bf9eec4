package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

func newDrain(a *app, on bool) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use: "drain", Short: "move the replicas of the local node elsewhere, and take no more", Args: noArgs(),
		Long: `Moves the replicas of the local node to others, one at a time: each serves here
until it is ready there. What no other node can take goes on running here. The
node takes no more until "form node undrain", also after a restart.

--wait stays until nothing runs here any more; replicas that their owner has
stopped do not count.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSwarm(cmd.Context(), func(c *swarm.Conn) error { return a.runDrain(cmd.Context(), c, on, wait) })
		},
	}
	if on {
		c.Flags().BoolVar(&wait, "wait", false, "stay until nothing runs here any more")
		return c
	}
	c.Use, c.Short, c.Long = "undrain", "let the local node take replicas again", ""
	return c
}

func (a *app) runDrain(ctx context.Context, c *swarm.Conn, on, wait bool) error {
	if err := c.API().Drain(ctx, on); err != nil {
		return err
	}
	v := struct {
		Draining bool `json:"draining"`
		Left     int  `json:"left"` // replicas that still run here
	}{Draining: on}
	self, err := c.API().Node(ctx)
	if err != nil {
		return err
	}
	if wait {
		if err := a.waitDrained(ctx, c, self.Node.Key); err != nil {
			return err
		}
	}
	left, err := leftOn(ctx, c, self.Node.Key)
	if err != nil {
		return err
	}
	v.Left = len(left)
	return a.p.Answer(v, func(w io.Writer) {
		switch {
		case !on:
			fmt.Fprintln(w, "not draining")
		case v.Left == 0:
			fmt.Fprintln(w, "drained")
		default:
			fmt.Fprintln(w, "draining")
		}
	})
}

// leftOver is a replica that still runs on a node.
type leftOver struct {
	instance string // name
	replica  api.Replica
}

// leftOn lists what runs on a node.
func leftOn(ctx context.Context, c *swarm.Conn, node stmt.Key) ([]leftOver, error) {
	list, err := c.API().Instances(ctx, nil)
	if err != nil {
		return nil, err
	}
	var out []leftOver
	for _, i := range list {
		for _, r := range i.Replicas {
			idle := r.Phase == string(crdt.ClaimStopped) || r.Phase == string(crdt.ClaimFailed)
			if r.Node == node && !idle {
				out = append(out, leftOver{i.Name, r})
			}
		}
	}
	return out, nil
}

// waitDrained stays until nothing runs on a node.
func (a *app) waitDrained(ctx context.Context, c *swarm.Conn, node stmt.Key) error {
	task := a.p.Start("draining")
	defer task.Done()
	var left []leftOver
	said := ""
	err := poll(ctx, func() (bool, error) {
		var err error
		if left, err = leftOn(ctx, c, node); err != nil {
			return false, err
		}
		if line := count(len(left), "replica") + " left"; line != said && len(left) > 0 {
			said = line
			task.Title(line)
			if !a.p.Terminal() {
				a.p.Note("%s", line)
			}
		}
		return len(left) == 0, nil
	})
	task.Done()
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		text := "timed out: " + said
		for _, l := range left {
			text += fmt.Sprintf("\n  %s/%d is %s: %s", l.instance, l.replica.Slot, l.replica.Phase, l.replica.Reason)
		}
		return cli.Errorf(api.ExitTimeout, "%s", text).Hint("it goes on without form").Hint("why one stays: form manage explain INSTANCE")
	}
	return err
}
