package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// nobody is what a user writes for no operator.
const nobody = "none"

func newNodeOperator(a *app) *cobra.Command {
	remove := false
	c := &cobra.Command{
		Use: "operator NODE [OWNER]", Short: "say that you, or an owner, run a node",
		Long: `Says with your key that you run NODE, which says so itself by formd --operator.
Then the node's machine and your devices are peers on the mesh: form net join gives
this machine the node's address and name. One of the two words brings nothing, so
nobody gets at your devices by naming you.

With OWNER the network's root says it, on a node that has the root key, by its own
socket: then the nodes of one operator are peers too, instances that list the
operator run there, and their replicas spread over operators. OWNER none takes that
back.

--remove takes your own word back, for ever.`,
		Args: argsBetween(1, 2, "a NODE, and an OWNER that the root names"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				if remove {
					return cli.Errorf(api.ExitUsage, "--remove takes back your own word").Hint("the root's: form node operator %s %s", args[0], nobody)
				}
				return a.withSwarm(cmd.Context(), func(c *swarm.Conn) error { return a.runNameOperator(cmd.Context(), c, args[0], args[1]) })
			}
			return a.withAuthor(cmd.Context(), func(c *swarm.Conn, au *crdt.Author) error {
				return a.runOwnNode(cmd.Context(), c, au, args[0], remove)
			})
		},
	}
	c.Flags().BoolVar(&remove, "remove", false, "take your word back, for ever")
	return c
}

// nodeOperator is the answer.
type nodeOperator struct {
	Node     stmt.Key `json:"node"`
	Operator stmt.Key `json:"operator"` // zero: nobody any more
	By       string   `json:"by"`       // root or owner
}

func (a *app) answerOperator(v nodeOperator) error {
	return a.p.Answer(v, func(w io.Writer) {
		fmt.Fprintf(w, "%s: operator %s, by the %s's word\n", v.Node, operatorText(v.Operator), v.By)
	})
}

func operatorText(k stmt.Key) string {
	if k.IsZero() {
		return nobody
	}
	return k.String()
}

func (a *app) runNameOperator(ctx context.Context, c *swarm.Conn, node, owner string) error {
	n, err := a.nodeOf(ctx, c, node)
	if err != nil {
		return err
	}
	var op stmt.Key
	if owner != nobody {
		if op, err = stmt.ParseKey(owner); err != nil {
			return cli.Errorf(api.ExitUsage, "%w", err).Hint("an owner's peer ID, as form key show prints it, or %s", nobody)
		}
	}
	if err := c.API().NameOperator(ctx, n.Key, op); err != nil {
		return err
	}
	a.saysItself(n, op)
	return a.answerOperator(nodeOperator{n.Key, op, "root"})
}

// saysItself warns when the node does not name an operator.
func (a *app) saysItself(n api.Node, op stmt.Key) {
	if !op.IsZero() && !slices.Contains(n.Operators, op) {
		a.p.Warn("the node does not say so itself, so its machine is no peer of that owner's devices\nhint: there: formd run --operator %s", op)
	}
}

func (a *app) runOwnNode(ctx context.Context, c *swarm.Conn, au *crdt.Author, name string, remove bool) error {
	n, err := a.nodeOf(ctx, c, name)
	if err != nil {
		key, perr := stmt.ParseKey(name) // of a node that is gone, or was never heard of
		if perr != nil || !remove {
			return err
		}
		n.Key = key
	}
	answer := nodeOperator{n.Key, au.Owner(), "owner"}
	listed := slices.ContainsFunc(au.Devices(), func(d crdt.Device) bool { return d.Node && d.Key == n.Key })
	var raws [][]byte
	switch {
	case remove && !listed:
		return cli.Errorf(api.ExitNotFound, "you do not say that you run %s", n.Key)
	case remove:
		answer.Operator = stmt.Key{}
		raws, err = au.RemoveDevice(n.Key)
	case !listed:
		raws, err = au.SetDevice(crdt.Device{Key: n.Key, Node: true})
	}
	switch {
	case errors.Is(err, crdt.ErrInvalid):
		return cli.Errorf(api.ExitUsage, "%w", err)
	case errors.Is(err, crdt.ErrQuota):
		return cli.Errorf(api.ExitNotAllowed, "%w", err).Hint("take one back that is gone: form node operator NODE --remove")
	case err != nil:
		return cannotSign("say that you run a node", "", err)
	}
	if len(raws) > 0 {
		if _, err := c.API().Submit(ctx, raws); err != nil {
			return err
		}
	}
	a.saysItself(n, answer.Operator)
	return a.answerOperator(answer)
}
