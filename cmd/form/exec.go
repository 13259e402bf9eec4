package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/fogvm/guest"
)

type execOptions struct {
	tty     bool
	stdin   bool
	user    string
	workdir string
	env     []string
}

func newExec(a *app) *cobra.Command {
	var o execOptions
	c := &cobra.Command{
		Use: "exec [USER@]INSTANCE[/N] -- COMMAND [ARG...]", Short: "run a command in an instance",
		Long: `Runs a command in one replica, without SSH, as root unless a user is named. The
exit code is the command's.`,
		Example: `  form manage exec hello-server -- uname -a
  form manage exec -it hello-server/1 -- bash`,
		Args: argsBetween(2, -1, "an INSTANCE and a COMMAND"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withInstance(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance, h host) error {
				if err := a.mine(i); err != nil {
					return err
				}
				return a.runExec(cmd.Context(), c, i, h, args[1:], o)
			})
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.tty, "tty", "t", false, "give it a terminal")
	f.BoolVarP(&o.stdin, "interactive", "i", false, "give it this standard input")
	f.StringVarP(&o.user, "user", "u", "", "run as this user")
	f.StringVarP(&o.workdir, "workdir", "w", "", "run in this folder")
	f.StringArrayVarP(&o.env, "env", "e", nil, "K=V to add to its environment (repeatable)")
	return c
}

func (a *app) runExec(ctx context.Context, c *swarm.Conn, i api.Instance, h host, argv []string, o execOptions) error {
	if argv[0] == "--" && len(argv) > 1 {
		argv = argv[1:]
	}
	r := guest.ExecRequest{Argv: argv, Env: o.env, User: o.user, Workdir: o.workdir}
	if r.User == "" {
		r.User = h.user
	}
	for _, kv := range o.env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return cli.Errorf(api.ExitUsage, "--env %q is not K=V", kv)
		}
	}
	var terminal *os.File
	if o.tty {
		f, ok := a.stdin.(*os.File)
		if !ok || !cli.IsTerminal(f) {
			return cli.Errorf(api.ExitUsage, "--tty: standard input is no terminal")
		}
		terminal = f
		r.TTY = true
		if w, ht, err := term.GetSize(int(f.Fd())); err == nil {
			r.Size = guest.WindowSize{Rows: uint16(ht), Cols: uint16(w)}
		}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	stdio := guest.ExecIO{Stdout: a.stdout, Stderr: a.stderr}
	if o.stdin || o.tty {
		stdio.Stdin = a.stdin
	}
	return a.onReplica(i, h, func(rep api.Replica) error {
		conn, err := c.Exec(ctx, rep.Node, api.ExecRequest{Instance: i.ID, Slot: rep.Slot, Exec: body})
		if err != nil {
			return err
		}
		restore, err := rawTerminal(terminal)
		if err != nil {
			return err
		}
		defer restore()
		if terminal != nil {
			sizes, stop := windowSizes(terminal)
			defer stop()
			stdio.Resize = sizes
		}
		code, err := guest.RunExec(ctx, conn, stdio)
		if err != nil {
			return err
		}
		if code != 0 {
			return cli.ExitStatus(code)
		}
		return nil
	})
}

// rawTerminal hands every key to the guest until restore is called.
func rawTerminal(f *os.File) (restore func(), err error) {
	if f == nil {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() {
		// The terminal may be gone; there is nothing left to restore then.
		_ = term.Restore(int(f.Fd()), state)
	}, nil
}
