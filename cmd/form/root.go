package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/tree"
)

const rootLong = `form builds Formpacks, ships them to a swarm of peers and looks after what
runs there.

It talks to the formd of --api or FORM_API, else the one on the default socket,
else straight to peers: --peer, FORM_PEER or the kit's hosts. No local daemon is
needed for anything.

Exit codes: 0 done, 1 failed, 2 usage or invalid input, 3 not found, 4 daemon or
peer unreachable, 5 not allowed, 6 timed out.`

// newRoot is the whole command tree.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use: "form", Short: "build Formpacks, ship them, look after them", Long: rootLong,
		SilenceErrors: true, SilenceUsage: true,
		Example: `  form kit init
  form pack validate
  form ship --replicas 2 --wait
  form ssh bigdog@hello-server`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return tree.Unknown(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.flags.api, "api", "", "unix socket of a formd, unix:///PATH (env FORM_API)")
	f.StringArrayVar(&a.flags.peers, "peer", nil, "multiaddr or ticket of a peer to go straight to (env FORM_PEER; repeatable)")
	f.StringVar(&a.flags.ticket, "ticket", "", "ticket of the swarm (env FORM_TICKET)")
	f.StringVar(&a.flags.config, "config", "", "the kit's folder (env FORM_CONFIG)")
	f.BoolVar(&a.flags.json, "json", false, "print the answer as JSON")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "say nothing but the answer, warnings and errors")
	f.BoolVar(&a.flags.debug, "debug", false, "log what happens underneath, on stderr")
	f.DurationVar(&a.flags.timeout, "timeout", 0, "give up after this time, with exit code 6 (0: never)")

	cancel := context.CancelFunc(func() {})
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if a.flags.timeout < 0 {
			return fmt.Errorf("--timeout: %s is negative", a.flags.timeout)
		}
		a.running = true
		a.p.JSON, a.p.Quiet = a.flags.json, a.flags.quiet
		if a.flags.timeout > 0 {
			var ctx context.Context
			ctx, cancel = context.WithTimeout(cmd.Context(), a.flags.timeout)
			cmd.SetContext(ctx)
		}
		return nil
	}
	root.PersistentPostRun = func(*cobra.Command, []string) { cancel() }
	root.AddGroup(
		&cobra.Group{ID: "make", Title: "Make and ship:"},
		&cobra.Group{ID: "run", Title: "Look after instances:"},
		&cobra.Group{ID: "reach", Title: "Reach into instances:"},
		&cobra.Group{ID: "swarm", Title: "The swarm:"},
		&cobra.Group{ID: "setup", Title: "Set up:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("make", newPack(a), newBase(a), newShip(a), newCommit(a))
	add("run", newManage(a), newLs(a), newStatusShort(a), newLogs(a), newScale(a), newRm(a), newSecret(a))
	add("reach", newSSH(a), newProxy(a), newForward(a))
	add("swarm", newNode(a), newPeers(a), newNet(a), newDoctor(a), newSim(a))
	add("setup", newKit(a), newKey(a), newConfig(a), newVersion(a))
	for _, c := range []*cobra.Command{
		later("top", "watch instances and their load", "figures of load from the guests", "what runs where: form ls, form status, form manage events"),
		later("ui", "a console in the browser", "the console", "until then: form status, form ls, form node ls, and curl of formd's web address"),
		later("verify", "check what an instance or a pack claims", "proofs that can be checked offline", "every block and statement is verified when it arrives; where replicas are and why: form manage explain"),
	} {
		c.Hidden = true
		root.AddCommand(c)
	}
	root.SetHelpCommandGroupID("setup")
	root.SetCompletionCommandGroupID("setup")
	tree.Finish(root)
	return root
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(subs...)
	return tree.Group(c)
}

// argsBetween wants min to max arguments; max < 0 is no bound. what names them.
func argsBetween(low, high int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= low && (high < 0 || len(args) <= high) {
			return nil
		}
		want := what
		if want == "" {
			want = "no arguments"
		}
		return cli.Errorf(api.ExitUsage, "%s takes %s; %d given", cmd.CommandPath(), want, len(args)).
			Hint("usage: %s", cmd.UseLine())
	}
}

// noArgs wants none.
func noArgs() cobra.PositionalArgs { return argsBetween(0, 0, "") }
