package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
)

// sshPort is where a guest's sshd listens.
const sshPort = "22"

type sshOptions struct {
	options  []string // -o of ssh
	forwards []string // -L of ssh
	tty      int      // -t
}

func newSSH(a *app) *cobra.Command {
	var o sshOptions
	c := &cobra.Command{
		Use: "ssh [USER@]HOST [-- COMMAND [ARG...]]", Short: "log in to an instance with OpenSSH",
		Long: `Runs this machine's OpenSSH over "form proxy". The guest's host key comes from
the swarm's signed state, and the login key from the kit, so nothing is asked:
neither to trust a key nor for a password. USER defaults to the first one of the
pack. The exit code is ssh's, which is the command's.`,
		Example: `  form ssh bigdog@hello-server
  form ssh bigdog@hello-server/1 -- id
  form ssh hello-server -o ForwardAgent=yes`,
		Args: argsBetween(1, -1, "a HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withInstance(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance, h host) error {
				return a.runSSH(cmd.Context(), c, i, h, args[1:], o)
			})
		},
	}
	f := c.Flags()
	f.SetInterspersed(true)
	f.StringArrayVarP(&o.options, "option", "o", nil, "option for ssh, as its -o (repeatable)")
	f.StringArrayVarP(&o.forwards, "forward", "L", nil, "local forward for ssh, as its -L (repeatable)")
	a.addVia(f)
	f.CountVarP(&o.tty, "tty", "t", "ask for a terminal, as ssh's -t")
	return c
}

func (a *app) runSSH(ctx context.Context, c *swarm.Conn, i api.Instance, h host, command []string, o sshOptions) error {
	if err := a.mine(i); err != nil {
		return err
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return cli.Errorf(api.ExitFailed, "there is no ssh on this machine").Hint("install OpenSSH's client: apt install openssh-client")
	}
	list, err := replicas(i, h)
	if err != nil {
		return err
	}
	r, hostKey, err := withHostKey(i, list)
	if err != nil {
		return err
	}
	if h.user == "" {
		if h.user, err = a.firstUser(ctx, c, i, r); err != nil {
			return err
		}
	}
	key, err := a.key()
	if err != nil {
		return err
	}
	dir := a.dir()
	if err := kit.WriteSSHKey(dir.SSHKey(), key); err != nil {
		return err
	}
	// One name stands for the guest in ssh's eyes, whatever the user typed.
	alias := fmt.Sprintf("%s-%d.formation", i.ID, r.Slot)
	known, err := tempFile(dir.Config, alias+" "+hostKey+"\n")
	if err != nil {
		return err
	}
	defer os.Remove(known)
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	argv := sshArgs(sshCall{
		self: self, global: a.passOn(), via: a.via, instance: i.ID, slot: r.Slot, user: h.user, alias: alias,
		known: known, key: dir.SSHKey(), command: command, opts: o,
	})
	return a.runProgram(ctx, ssh, argv)
}

// withHostKey is the first replica whose guest has published its host key.
func withHostKey(i api.Instance, list []api.Replica) (api.Replica, string, error) {
	for _, r := range list {
		if k := text(r.SSHHostKey); k != "" {
			clean, err := kit.ParseAuthorizedKey(k)
			if err != nil {
				return r, "", fmt.Errorf("host key of %s/%d: %w", i.Name, r.Slot, err)
			}
			return r, clean, nil
		}
	}
	return api.Replica{}, "", cli.Errorf(api.ExitFailed, "%s has not published an SSH host key: it is still booting, or its base has no sshd", i.Name).
		Hint("when it is ready: form manage get status --watch %s", i.Name).
		Hint("without SSH: form manage exec -it %s -- bash", i.Name)
}

// firstUser is the pack's first USER, else root. The node that runs the replica
// has the pack; this machine may.
func (a *app) firstUser(ctx context.Context, c *swarm.Conn, i api.Instance, r api.Replica) (string, error) {
	users, err := a.usersOf(ctx, c, i, r)
	if err != nil {
		return "", cli.Errorf(api.ExitOf(err), "cannot tell the first user of pack %s: %w", i.Pack, err).
			Hint("name one: form ssh USER@%s", i.Name)
	}
	if len(users) == 0 {
		return "root", nil
	}
	return users[0], nil
}

func (a *app) usersOf(ctx context.Context, c *swarm.Conn, i api.Instance, r api.Replica) ([]string, error) {
	node, err := c.APIOf(ctx, r.Node)
	if err != nil {
		return nil, err
	}
	p, err := node.Pack(ctx, i.Pack)
	return p.Users, err
}

// sshCall is everything that goes into ssh's command line.
type sshCall struct {
	self     string
	global   []string // flags for form proxy
	via      via
	instance string
	slot     int
	user     string
	alias    string
	known    string
	key      string
	command  []string
	opts     sshOptions
}

// sshArgs is the command line of ssh: nothing is asked, nothing is learned, and
// only the kit's key is offered, so that no agent runs into MaxAuthTries.
func sshArgs(c sshCall) []string {
	proxy := quoteAll(append(append([]string{c.self}, c.global...), "proxy", "--via", string(c.via), fmt.Sprintf("%s/%d", c.instance, c.slot), "%p"))
	args := []string{
		"-o", "ProxyCommand=" + proxy,
		"-o", "UserKnownHostsFile=" + quoteConfig(c.known),
		"-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "HostKeyAlias=" + c.alias,
		"-o", "StrictHostKeyChecking=yes",
		"-o", "CheckHostIP=no",
		"-o", "UpdateHostKeys=no",
		"-o", "BatchMode=yes",
		"-o", "IdentitiesOnly=yes",
		"-o", "LogLevel=ERROR",
		"-i", c.key,
		"-p", sshPort,
		"-l", c.user,
	}
	for _, o := range c.opts.options {
		args = append(args, "-o", o)
	}
	for _, f := range c.opts.forwards {
		args = append(args, "-L", f)
	}
	for range c.opts.tty {
		args = append(args, "-t")
	}
	args = append(args, "--", c.alias)
	return append(args, c.command...)
}

// quoteAll makes one command line for ssh's ProxyCommand, which a shell runs
// after ssh has replaced %h, %p and %%.
func quoteAll(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		if w != "%p" {
			w = "'" + strings.ReplaceAll(strings.ReplaceAll(w, "%", "%%"), "'", `'\''`) + "'"
		}
		out[i] = w
	}
	return strings.Join(out, " ")
}

// quoteConfig quotes a path as ssh_config wants it: files are lists there.
func quoteConfig(path string) string {
	return `"` + strings.ReplaceAll(strings.ReplaceAll(path, "%", "%%"), `"`, `\"`) + `"`
}

// passOn is the global flags that a form started by this one needs to find the
// same swarm; the environment passes itself on.
func (a *app) passOn() []string {
	var out []string
	add := func(flag, v string) {
		if v != "" {
			out = append(out, flag, v)
		}
	}
	add("--api", a.flags.api)
	for _, p := range a.flags.peers {
		add("--peer", p)
	}
	add("--config", a.flags.config)
	return append(out, "--quiet")
}

func tempFile(dir, content string) (name string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("known hosts: %w", err)
	}
	f, err := os.CreateTemp(dir, ".known_hosts-*")
	if err != nil {
		return "", fmt.Errorf("known hosts: %w", err)
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("known hosts: %w", err), os.Remove(f.Name()))
	}
	return filepath.Abs(f.Name())
}

// runProgram runs a program on this one's streams and ends with its status.
func (a *app) runProgram(ctx context.Context, path string, argv []string) error {
	cmd := exec.CommandContext(ctx, path, argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Env = a.environ()
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = pollEvery * 4
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		if code := exit.ExitCode(); code >= 0 {
			return cli.ExitStatus(code)
		}
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return nil
}

// environ passes the flags on that must not be seen in a process list, and a
// password that was typed once.
func (a *app) environ() []string {
	env := os.Environ()
	if a.flags.ticket != "" {
		env = append(env, "FORM_TICKET="+a.flags.ticket)
	}
	if a.typed != "" {
		env = append(env, "FORM_PASSWORD="+a.typed)
	}
	return env
}
