package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/charmbracelet/huh"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// author is the owner's pen: it knows what the owner has said so far.
func (a *app) author(ctx context.Context, c *swarm.Conn) (*crdt.Author, error) {
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	network, err := c.Network(ctx)
	if err != nil {
		return nil, err
	}
	owner, err := a.owner()
	if err != nil {
		return nil, err
	}
	raws, err := c.API().OwnerStatements(ctx, owner)
	if err != nil {
		return nil, err
	}
	au, err := crdt.NewDelegate(key, owner, network, raws)
	if err != nil {
		return nil, fmt.Errorf("read what you have shipped so far: %w", err)
	}
	return au, nil
}

// alter signs and hands in a change of one instance.
func (a *app) alter(ctx context.Context, arg, done string, mutate func(*crdt.Spec)) error {
	return a.withWhole(ctx, arg, func(c *swarm.Conn, i api.Instance) error {
		if err := a.sign(ctx, c, i, mutate); err != nil {
			return err
		}
		return a.changed(i, done)
	})
}

func (a *app) sign(ctx context.Context, c *swarm.Conn, i api.Instance, mutate func(*crdt.Spec)) error {
	if err := a.mine(i); err != nil {
		return err
	}
	au, err := a.author(ctx, c)
	if err != nil {
		return err
	}
	raws, err := au.Set(i.ID, mutate)
	if err != nil {
		return cannotSign("sign the change of "+i.Name, i.Name, err)
	}
	if len(raws) == 0 {
		return nil // it is as wanted already
	}
	_, err = c.API().Submit(ctx, raws)
	return err
}

// cannotSign tells a device, or a delegate of other instances, what its key lacks.
func cannotSign(doing, name string, err error) error {
	switch {
	case errors.Is(err, crdt.ErrNotOwner):
		return cli.Errorf(api.ExitNotAllowed, "%s: %w", doing, err).Hint("use the owner's key: --config DIR or FORM_KEY_FILE, without FORM_OWNER")
	case errors.Is(err, stmt.ErrAuthority):
		return cli.Errorf(api.ExitNotAllowed, "%s: %w", doing, err).Hint("the owner makes it one: form manage delegate %s KEY", name)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// mine refuses what only the owner may do before anything is signed.
func (a *app) mine(i api.Instance) error {
	me, err := a.owner()
	if err != nil {
		return err
	}
	if i.Owner != me {
		return cli.Errorf(api.ExitNotAllowed, "%s (%s) belongs to %s, and you are %s", i.Name, i.ID, i.Owner, me).
			Hint("use its owner's key: --config DIR or FORM_KEY_FILE")
	}
	return nil
}

// change is the answer of a verb that changes an instance.
type change struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Done string `json:"done"`
}

func (c change) String() string { return c.Name + ": " + c.Done }

// changed answers for a verb on one instance.
func (a *app) changed(i api.Instance, done string) error {
	v := change{i.ID, i.Name, done}
	return a.p.Answer(v, func(w io.Writer) { fmt.Fprintln(w, v) })
}

// changes answers for a verb on several.
func (a *app) changes(list []change) error {
	return a.p.Answer(list, func(w io.Writer) {
		for _, v := range list {
			fmt.Fprintln(w, v)
		}
	})
}

func newStop(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "stop INSTANCE", Short: "stop an instance's VMs and keep their disks", Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.alter(cmd.Context(), args[0], "stopping", func(s *crdt.Spec) { s.Phase = crdt.PhaseStopped })
		},
	}
}

func newStart(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "start INSTANCE", Short: "start a stopped instance", Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.alter(cmd.Context(), args[0], "starting", func(s *crdt.Spec) { s.Phase = crdt.PhaseRunning })
		},
	}
}

func newRestart(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "restart INSTANCE", Short: "reboot an instance's VMs, disks kept", Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.alter(cmd.Context(), args[0], "restarting", func(s *crdt.Spec) {
				s.Phase = crdt.PhaseRunning
				s.Restart++
			})
		},
	}
}

func newManageScale(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "scale INSTANCE N", Short: "change the number of replicas", Args: argsBetween(2, 2, "an INSTANCE and a number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[1])
			if err != nil || n < 1 || n > crdt.MaxReplicas {
				return cli.Errorf(api.ExitUsage, "%q is not a number of replicas between 1 and %d", args[1], crdt.MaxReplicas).
					Hint("to have none run: form manage stop %s", args[0])
			}
			return a.alter(cmd.Context(), args[0], fmt.Sprintf("scaling to %d", n), func(s *crdt.Spec) { s.Replicas = n })
		},
	}
}

func newUpdate(a *app) *cobra.Command {
	o := shipOptions{update: true}
	c := &cobra.Command{
		Use: "update INSTANCE [CID|DIR]", Short: "recreate an instance, with another pack or the same",
		Long: `Without a pack the replicas are recreated from the one they have, with fresh
disks. With flags that say what to change, only that is changed and the disks
stay. With a CID or a folder that holds a Formfile that pack is shipped in its
place. The instance keeps its ID.`,
		Args: argsBetween(1, 2, "an INSTANCE and at most one CID or DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.given = cmd.Flags().Changed
			if len(args) == 2 {
				return a.runUpdate(cmd.Context(), args[0], args[1], o)
			}
			return a.runUpdateInPlace(cmd.Context(), args[0], o)
		},
	}
	o.addFlags(c.Flags())
	return c
}

// runUpdate ships a pack in the place of an instance's present one.
func (a *app) runUpdate(ctx context.Context, instance, pack string, o shipOptions) error {
	return a.withWhole(ctx, instance, func(_ *swarm.Conn, i api.Instance) error {
		if err := a.mine(i); err != nil {
			return err
		}
		o.id, o.name = i.ID, i.Name
		return a.runShip(ctx, pack, o)
	})
}

// runUpdateInPlace keeps an instance's pack: it does what the flags say, or
// without any begins anew with fresh disks.
func (a *app) runUpdateInPlace(ctx context.Context, instance string, o shipOptions) error {
	for _, f := range []string{"file", "no-cache", "hold"} {
		if o.given(f) {
			return cli.Errorf(api.ExitUsage, "--%s is about a pack to ship, and none is named", f).
				Hint("form manage update %s DIR", instance)
		}
	}
	want, err := a.readWishes(o)
	if err != nil {
		return err
	}
	done, mutate := "updating", func(s *crdt.Spec) { want.change(s) }
	switch {
	case o.given("ssh-key"):
		own, err := a.ownSSHKey()
		if err != nil {
			return err
		}
		mutate = func(s *crdt.Spec) {
			want.change(s)
			s.SSHKeys = want.authorised(own)
		}
	case !slices.ContainsFunc([]string{"replicas", "env", "label", "region", "voters"}, o.given):
		done, mutate = "recreating", func(s *crdt.Spec) {
			s.Phase = crdt.PhaseRunning
			s.Recreate++
		}
	}
	return a.withWhole(ctx, instance, func(c *swarm.Conn, i api.Instance) error {
		voters := i.Spec.Voters
		if want.voters.given {
			var err error
			if voters, err = a.voters(ctx, c, want.voters, i.Spec.Partition, i.Name, voters); err != nil {
				return err
			}
		}
		err := a.sign(ctx, c, i, func(s *crdt.Spec) {
			mutate(s)
			if want.voters.given {
				s.Voters = voters
			}
		})
		if err != nil {
			return err
		}
		if o.wait != "" {
			err = a.waitFor(ctx, c, i.ID, i.Pack, o.wait == waitAll)
		}
		// It is changed, whatever became of the waiting.
		return errors.Join(a.changed(i, done), err)
	})
}

type deleteOptions struct{ yes bool }

func newDelete(a *app) *cobra.Command {
	var o deleteOptions
	c := &cobra.Command{
		Use: "delete INSTANCE...", Aliases: []string{"rm"}, Short: "delete instances and their disks",
		Args: argsBetween(1, -1, "one INSTANCE or more"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runDelete(cmd.Context(), args, o) },
	}
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return c
}

func (a *app) runDelete(ctx context.Context, args []string, o deleteOptions) (err error) {
	var hosts []host
	for _, arg := range args {
		h, err := wholeInstance(arg)
		if err != nil {
			return err
		}
		hosts = append(hosts, h)
	}
	c, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	list, err := a.findAll(ctx, c, hosts)
	if err != nil {
		return err
	}
	if ok, err := a.confirmDelete(ctx, list, o); err != nil || !ok {
		return err
	}
	au, err := a.author(ctx, c)
	if err != nil {
		return err
	}
	done := []change{}
	for _, i := range list {
		raws, err := au.Delete(i.ID)
		if err == nil {
			_, err = c.API().Submit(ctx, raws)
		}
		if err != nil {
			err = cannotSign("delete "+i.Name, i.Name, err)
			if len(done) > 0 { // what is deleted already stays so, and is answered
				err = errors.Join(a.changes(done), err)
			}
			return err
		}
		done = append(done, change{i.ID, i.Name, "deleted"})
	}
	return a.changes(done)
}

// findAll is the caller's own instances that hosts mean, each once.
func (a *app) findAll(ctx context.Context, c *swarm.Conn, hosts []host) ([]api.Instance, error) {
	var list []api.Instance
	for _, h := range hosts {
		i, err := a.findWhole(ctx, c, h)
		if err == nil {
			err = a.mine(i)
		}
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(list, func(o api.Instance) bool { return o.ID == i.ID }) {
			list = append(list, i)
		}
	}
	return list, nil
}

func (a *app) confirmDelete(ctx context.Context, list []api.Instance, o deleteOptions) (bool, error) {
	title := fmt.Sprintf("Delete %s and its disks?", list[0].Name)
	if len(list) > 1 {
		title = fmt.Sprintf("Delete %d instances and their disks?", len(list))
	}
	return a.confirm(ctx, title, "Delete", "Keep", o.yes)
}

// confirm asks whoever sits there whether to do what title says; with yes, and
// when nobody does, the answer is that.
func (a *app) confirm(ctx context.Context, title, do, leave string, yes bool) (bool, error) {
	if yes || !a.interactive() {
		return true, nil
	}
	q := huh.NewForm(huh.NewGroup(huh.NewConfirm().Title(title).Affirmative(do).Negative(leave).Value(&yes)))
	if err := a.ask(ctx, q); err != nil {
		return false, err
	}
	if !yes {
		a.p.Note("nothing was done")
	}
	return yes, nil
}
