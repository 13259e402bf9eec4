package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/seal"
	"github.com/formthefog/formation/crdt/stmt"
)

func newSecret(a *app) *cobra.Command {
	c := group("secret", "give instances what nobody else may read",
		newSecretSet(a), newSecretLs(a), newSecretRm(a), newSecretSync(a))
	c.Long = `A secret is encrypted here, to your own key and to the nodes that run the
instance, and to nobody else. The guest finds it as the file /run/secrets/KEY,
before its entrypoint starts and anew whenever it changes. When a replica moves,
the new node gets it from one that runs; when none does, it waits for
form secret sync.`
	return c
}

type secretOptions struct {
	env      bool
	envGiven bool
	file     string
	ship     bool // it is a flag of form ship
}

// ways are how to give the value of key: the command that reads it, and the flag
// that names a file.
func (o secretOptions) ways(key string) (command, flag string) {
	if o.ship {
		return "form ship --secret " + key, "--secret " + key + "=FILE"
	}
	return "form secret set INSTANCE " + key, "--from-file FILE"
}

func newSecretSet(a *app) *cobra.Command {
	var o secretOptions
	c := &cobra.Command{
		Use: "set INSTANCE KEY", Short: "set a secret of an instance",
		Long: `The value is read from standard input, without one line break at its end, or
byte for byte from --from-file, or asked for. It has at most 4096 bytes. Running
replicas see the new file at once; a variable (--env) shows when the entrypoint
starts next: form manage restart.`,
		Example: `  pwgen 32 1 | form secret set web DB_PASSWORD
  form secret set web tls.key --from-file tls.key`,
		Args: argsBetween(2, 2, "an INSTANCE and a KEY; the value comes on standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.envGiven = cmd.Flags().Changed("env")
			return a.runSecretSet(cmd.Context(), args[0], args[1], o)
		},
	}
	c.Flags().BoolVar(&o.env, "env", false, "give it to the entrypoint as a variable too")
	c.Flags().StringVar(&o.file, "from-file", "", "read the value from a file")
	return c
}

func newSecretLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls INSTANCE", Short: "list an instance's secrets, without their values", Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withWhole(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance) error {
				return a.runSecretLs(cmd.Context(), c, i)
			})
		},
	}
}

func newSecretRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm INSTANCE KEY", Short: "remove a secret from an instance", Args: argsBetween(2, 2, "an INSTANCE and a KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withPen(cmd.Context(), args[0], func(p *secretPen) error {
				raws, err := p.author.RemoveSecret(p.inst.ID, args[1])
				if err != nil {
					return err
				}
				if err := p.submit(cmd.Context(), raws); err != nil {
					return err
				}
				return a.changed(p.inst, "secret "+args[1]+" is removed")
			})
		},
	}
}

func newSecretSync(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "sync INSTANCE", Short: "encrypt an instance's secrets to the nodes that run it now",
		Long: `When every node that could read an instance's secrets is gone, its new replicas
wait. This command decrypts the secrets by your key and encrypts them to the nodes
that hold the replicas now.`,
		Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withPen(cmd.Context(), args[0], func(p *secretPen) error {
				n, err := p.sync(cmd.Context(), "")
				if err != nil {
					return err
				}
				p.warnAlone()
				return a.changed(p.inst, fmt.Sprintf("%d of %d secrets encrypted anew, to %s", n, len(p.author.Secrets(p.inst.ID)), nodes(len(p.nodes))))
			})
		},
	}
}

func nodes(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

// checkSecret refuses what no secret can be.
func checkSecret(key string, value []byte, env bool) error {
	switch {
	case !crdt.SecretName(key):
		return cli.Errorf(api.ExitUsage, "%.80q cannot name a secret", key).
			Hint("1 to %d letters, digits, and _ . -, the first a letter, a digit or _", crdt.MaxSecretName)
	case len(value) > crdt.MaxSecretValue:
		return cli.Errorf(api.ExitUsage, "the value has more than %d bytes", crdt.MaxSecretValue)
	case env && !envKey.MatchString(key):
		return cli.Errorf(api.ExitUsage, "%q cannot be a variable's name: letters, digits and _, and no digit first", key)
	case env && bytes.IndexByte(value, 0) >= 0:
		return cli.Errorf(api.ExitUsage, "a variable's value cannot hold a zero byte")
	}
	return nil
}

// secretValue reads the value, which is never an argument: others see those.
func (a *app) secretValue(key string, o secretOptions) ([]byte, error) {
	if o.file != "" {
		f, err := os.Open(o.file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, crdt.MaxSecretValue+1))
	}
	command, flag := o.ways(key)
	if cli.IsTerminal(a.stdin) {
		text, err := a.readPassword("value of " + key + ": ")
		if err == nil && text == "" {
			err = cli.Errorf(api.ExitUsage, "no value was typed").Hint("an empty one comes from a file: %s", flag)
		}
		return []byte(text), err
	}
	b, err := io.ReadAll(io.LimitReader(a.stdin, crdt.MaxSecretValue+3))
	if err != nil {
		return nil, fmt.Errorf("read the value: %w", err)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 {
		return nil, cli.Errorf(api.ExitUsage, "no value came on standard input").
			Hint("printf %%s VALUE | %s, or %s", command, flag)
	}
	return b, nil
}

func (a *app) runSecretSet(ctx context.Context, instance, key string, o secretOptions) error {
	if err := checkSecret(key, nil, o.env); err != nil {
		return err
	}
	value, err := a.secretValue(key, o)
	if err == nil {
		err = checkSecret(key, value, o.env)
	}
	if err != nil {
		return err
	}
	frame, err := seal.New(value)
	if err != nil {
		return err
	}
	return a.withPen(ctx, instance, func(p *secretPen) error {
		env := o.env
		for _, c := range p.author.Secrets(p.inst.ID) {
			if c.Name == key && !o.envGiven {
				env = c.Env // as it was
			}
		}
		if err := checkSecret(key, value, env); err != nil {
			return err
		}
		raws, err := p.seal(key, env, frame)
		if err != nil {
			return err
		}
		if err := p.submit(ctx, raws); err != nil {
			return err
		}
		if _, err := p.sync(ctx, key); err != nil {
			return fmt.Errorf("%s is set, but not the others encrypted anew: %w", key, err)
		}
		p.warnAlone()
		return a.changed(p.inst, fmt.Sprintf("secret %s is set, for %s", key, nodes(len(p.nodes))))
	})
}

func (a *app) runSecretLs(ctx context.Context, c *swarm.Conn, i api.Instance) error {
	if err := a.mine(i); err != nil {
		return err
	}
	network, err := c.Network(ctx)
	if err != nil {
		return err
	}
	raws, err := c.API().OwnerStatements(ctx, i.Owner)
	if err != nil {
		return err
	}
	// Membership is for the peers to judge; these are the owner's own words.
	list := api.SecretsOf(viewOf(network, stmt.Key{}, raws), i.ID)
	return a.p.Answer(list, func(w io.Writer) {
		var rows [][]string
		for _, s := range list {
			env := "no"
			if s.Env {
				env = "yes"
			}
			rows = append(rows, []string{s.Name, s.SetAt.Format(time.RFC3339), nodes(len(s.Nodes)), env})
		}
		cli.Table(w, []string{"NAME", "SET", "FOR", "ENV"}, rows)
	})
}

// viewOf is what statements say; those that do not verify say nothing.
func viewOf(network stmt.NetworkID, root stmt.Key, raws ...[][]byte) *crdt.View {
	s := crdt.NewState(network, root, crdt.NewModel())
	for _, raw := range slices.Concat(raws...) {
		// A peer's set may hold what is stale or of no use here.
		_, _ = s.Apply(raw, time.Time{})
	}
	return s.View()
}

// secretPen writes the secrets of one instance.
type secretPen struct {
	a      *app
	conn   *swarm.Conn
	inst   api.Instance
	key    ed25519.PrivateKey
	author *crdt.Author
	nodes  []stmt.Key // who is to be able to read them, beside the owner
}

func (a *app) withPen(ctx context.Context, instance string, f func(*secretPen) error) error {
	return a.withWhole(ctx, instance, func(c *swarm.Conn, i api.Instance) error {
		p, err := a.pen(ctx, c, i)
		if err != nil {
			return err
		}
		return f(p)
	})
}

func (a *app) pen(ctx context.Context, c *swarm.Conn, i api.Instance) (*secretPen, error) {
	if err := a.mine(i); err != nil {
		return nil, err
	}
	au, err := a.author(ctx, c)
	if err != nil {
		return nil, err
	}
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	p := &secretPen{a: a, conn: c, inst: i, key: key, author: au}
	p.nodes, err = p.holders(ctx)
	return p, err
}

// holders are the nodes that run the instance, those that serve first: members
// by the network's root, whose own signed claims say so. The peer that is asked
// is believed in nothing but which of them are dead.
func (p *secretPen) holders(ctx context.Context) ([]stmt.Key, error) {
	network, err := p.conn.Network(ctx)
	if err != nil {
		return nil, err
	}
	self, err := p.conn.API().Node(ctx)
	if err != nil {
		return nil, err
	}
	if self.Network.NetworkID() != network {
		return nil, cli.Errorf(api.ExitNotAllowed, "the peer names another root than that of network %s", network.Short()).
			Hint("do not trust it: use another (--peer)")
	}
	raws, err := p.conn.API().ClaimStatements(ctx, p.inst.ID)
	if err != nil {
		return nil, err
	}
	mine := p.author.Instances()
	at := slices.IndexFunc(mine, func(s crdt.Spec) bool { return s.ID == p.inst.ID })
	if at < 0 {
		return nil, fmt.Errorf("%s: %w", p.inst.Name, crdt.ErrNotFound)
	}
	v := viewOf(network, self.Network.Root, raws)
	claims := slices.DeleteFunc(slices.Clone(v.Claims(p.inst.ID)), func(c crdt.Claim) bool {
		return c.Owner != p.inst.Owner || c.Slot >= mine[at].Replicas || c.Phase == crdt.ClaimFailed || c.Phase == crdt.ClaimDraining ||
			!v.MayRun(&mine[at], c.Node) || p.dead(c.Node)
	})
	slices.SortStableFunc(claims, func(a, b crdt.Claim) int {
		unready := func(c crdt.Claim) int {
			if c.Ready {
				return 0
			}
			return 1
		}
		return cmp.Compare(unready(a), unready(b))
	})
	var out []stmt.Key
	for _, c := range claims {
		if !slices.Contains(out, c.Node) && len(out) < crdt.MaxRecipients {
			out = append(out, c.Node)
		}
	}
	return out, nil
}

func (p *secretPen) dead(node stmt.Key) bool {
	return slices.ContainsFunc(p.inst.Replicas, func(r api.Replica) bool { return r.Node == node && r.Live == "dead" })
}

// seal encrypts one secret to the present holders.
func (p *secretPen) seal(name string, env bool, frame seal.Frame) ([][]byte, error) {
	box, to, err := seal.Box(frame, p.inst.Owner, p.nodes)
	if err != nil {
		return nil, err
	}
	return p.author.SetSecret(p.inst.ID, crdt.Secret{Name: name, Env: env, Box: box, Sum: frame.Sum(), To: to})
}

// sync encrypts every secret but one anew that is not for just the present
// holders, and says how many those were.
func (p *secretPen) sync(ctx context.Context, but string) (n int, err error) {
	want := slices.SortedFunc(slices.Values(p.nodes), stmt.Key.Compare)
	var raws [][]byte
	for _, c := range p.author.Secrets(p.inst.ID) {
		if c.Name == but || slices.Equal(c.To, want) {
			continue
		}
		frame, err := seal.Open(p.key, c.Box, c.Sum)
		if err != nil {
			return n, fmt.Errorf("secret %s: %w", c.Name, err)
		}
		more, err := p.seal(c.Name, c.Env, frame)
		if err != nil {
			return n, fmt.Errorf("secret %s: %w", c.Name, err)
		}
		raws = append(raws, more...)
		n++
	}
	if len(raws) == 0 {
		return 0, nil
	}
	return n, p.submit(ctx, raws)
}

// maxSubmit keeps a request of raw statements, base64 in JSON, within MaxBody.
const maxSubmit = api.MaxBody / 2

func (p *secretPen) submit(ctx context.Context, raws [][]byte) error {
	for len(raws) > 0 {
		size, n := 0, 0
		for n < len(raws) && size+len(raws[n]) <= maxSubmit {
			size += len(raws[n])
			n++
		}
		if _, err := p.conn.API().Submit(ctx, raws[:n]); err != nil {
			return err
		}
		raws = raws[n:]
	}
	return nil
}

// warnAlone says when only the owner can read the secrets.
func (p *secretPen) warnAlone() {
	if len(p.nodes) == 0 {
		p.a.p.Warn("no node runs %s now, so only you can read its secrets\nhint: when one does: form secret sync %s", p.inst.Name, p.inst.Name)
	}
}

// healSecrets encrypts an instance's secrets anew while it waits for that; said
// is the status's reason. It says whether it did.
func (a *app) healSecrets(ctx context.Context, c *swarm.Conn, i api.Instance, said string) (bool, error) {
	if !strings.Contains(said, crdt.AwaitsSecrets) {
		return false, nil
	}
	p, err := a.pen(ctx, c, i)
	if err != nil {
		return false, err
	}
	n, err := p.sync(ctx, "")
	if err != nil {
		return false, errors.Join(errors.New("encrypt its secrets to the nodes that run it now"), err)
	}
	if n > 0 {
		a.p.Note("encrypted %d secrets of %s to %s that run it now", n, i.Name, nodes(len(p.nodes)))
	}
	return n > 0, nil
}
