package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

// joinDir is where joined devices are found: root's alone.
const joinDir = "/run/form"

// maxInterface bounds an interface's name, in bytes.
const maxInterface = 15

type joinOptions struct {
	name   string
	detach bool
	noDNS  bool

	incoming bool
}

func newNetJoin(a *app) *cobra.Command {
	o := joinOptions{name: "form0"}
	c := &cobra.Command{
		Use: "join", Short: "give this machine an interface on the mesh",
		Long: `Makes an interface whose peers are your replicas, so that every program on this
machine reaches them, by address and by name (NAME.dev.formation.cloud). They open
no connection to this machine, unless --incoming lets them. It stays in the
foreground, as a service manager wants it, and takes back everything when it
ends; --detach leaves it in the background, until form net leave.

It needs root. Without, it makes this machine's device, which takes your key, and
prints the command for root, which does not.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkInterface(o.name); err != nil {
				return err
			}
			return a.runNetJoin(cmd.Context(), o)
		},
	}
	o.addFlags(c)
	c.Flags().BoolVar(&o.detach, "detach", false, "stay in the background")
	return c
}

func (o *joinOptions) addFlags(c *cobra.Command) {
	c.Flags().StringVar(&o.name, "interface", o.name, "name of the interface")
	c.Flags().BoolVar(&o.incoming, "incoming", false, "let your replicas, and who runs their hosts, open connections to this machine")
	c.Flags().BoolVar(&o.noDNS, "no-dns", false, "leave this machine's resolver alone")
}

// more is the flags that have no value.
func (o joinOptions) more() (flags []string) {
	if o.incoming {
		flags = append(flags, "--incoming")
	}
	if o.noDNS {
		flags = append(flags, "--no-dns")
	}
	return flags
}

func checkInterface(name string) error {
	ok := name != "" && len(name) <= maxInterface
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}
	if !ok {
		return cli.Errorf(api.ExitUsage, "--interface: %q is no interface's name: at most %d letters, digits, - and _", name, maxInterface)
	}
	return nil
}

func newNetLeave(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "end what form net join has made", Args: noArgs(),
		Long: `Ends the interface of form net join, wherever that runs, and waits until nothing of
it is left. The device stays yours, for the next time: form key device rm ends it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSwarm(cmd.Context(), func(c *swarm.Conn) error { return a.runNetLeave(cmd.Context(), c) })
		},
	}
}

func (a *app) runNetLeave(ctx context.Context, c *swarm.Conn) error {
	none := cli.Errorf(api.ExitNotFound, "this machine has not joined").Hint("form net join")
	d, err := a.joined(ctx, c)
	if errors.Is(err, fs.ErrNotExist) {
		return none
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return a.asRoot("leave")
	}
	place, err := agent.PlaceIn(joinDir, d.identity())
	if err != nil {
		return err
	}
	err = agent.Stop(ctx, place.Socket())
	dead := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
	if err != nil && !dead {
		return err
	}
	if err := errors.Join(place.Gone(ctx), undoNames(ctx, place.File("dns"))); err != nil {
		return err
	}
	if dead {
		return none
	}
	v := struct {
		Left bool `json:"left"`
	}{true}
	return a.p.Answer(v, func(w io.Writer) { fmt.Fprintln(w, "left") })
}

// joined is the device of this machine's interface. The error wraps fs.ErrNotExist
// when there is none.
func (a *app) joined(ctx context.Context, c *swarm.Conn) (d ownDevice, err error) {
	if d.owner, err = a.owner(); err != nil {
		return d, err
	}
	if d.network, d.Settings, err = c.Settled(ctx); err != nil {
		return d, err
	}
	if d.key, err = kit.LoadDevice(a.dir().Interface()); err != nil {
		return d, err
	}
	d.mesh, err = kit.MeshKey(d.key)
	return d, err
}

// asRoot says which command root has to run.
func (a *app) asRoot(verb string, more ...string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	config, err := filepath.Abs(a.dir().Config)
	if err != nil {
		return err
	}
	line := "sudo " + quoteAll([]string{self, "--config", config})
	for _, way := range [][2]string{{"--api", a.flags.api}, {"--api", a.getenv("FORM_API")}} {
		if way[1] != "" {
			line += " " + way[0] + " " + quoteAll(way[1:])
			break
		}
	}
	for _, p := range a.flags.peers {
		line += " --peer " + quoteAll([]string{p})
	}
	line += " net " + verb
	for _, m := range more {
		line += " " + m
	}
	return cli.Errorf(api.ExitNotAllowed, "an interface needs root").Hint("%s", line)
}

func (a *app) runNetJoin(ctx context.Context, o joinOptions) error {
	l, err := a.joinLaunch(ctx)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		more := []string{"--detach"}
		if o.name != "form0" {
			more = append(more, "--interface", o.name)
		}
		return a.asRoot("join", append(more, o.more()...)...)
	}
	if !o.detach {
		return a.join(ctx, l, o, func(j joined) error { return a.answerJoined(j) })
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	config, err := filepath.Abs(a.dir().Config)
	if err != nil {
		return err
	}
	argv := append([]string{self, "--config", config, "net", "joined", "--interface", o.name}, o.more()...)
	if err := os.MkdirAll(joinDir, 0o700); err != nil {
		return err
	}
	if err := agent.Start(ctx, argv, l, filepath.Join(joinDir, o.name+".log")); err != nil {
		return err
	}
	cfg, device, err := l.mesh(a.logger())
	if err != nil {
		return err
	}
	place, err := agent.PlaceIn(joinDir, cfg.Identity)
	if err != nil {
		return errors.Join(err, device.Close())
	}
	s, err := agent.StatusOf(ctx, place.Socket())
	if err != nil {
		return errors.Join(err, device.Close())
	}
	return a.answerJoined(joined{Interface: o.name, Address: s.Address, Device: s.Device})
}

// newJoined is what form net join --detach leaves in the background.
func newJoined(a *app) *cobra.Command {
	o := joinOptions{name: "form0"}
	c := &cobra.Command{
		Use: "joined", Short: "be what form net join --detach leaves", Hidden: true, Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l launch
			if err := agent.Launched(a.stdin, &l); err != nil {
				return err
			}
			said := false
			err := a.join(cmd.Context(), l, o, func(joined) error { said = true; return agent.Ready(a.stdout, nil) })
			if !said {
				err = errors.Join(err, agent.Ready(a.stdout, err))
			}
			return err
		},
	}
	o.addFlags(c)
	return c
}

// joined is what form net join answers.
type joined struct {
	Interface string   `json:"interface"`
	Address   string   `json:"address"`
	Device    stmt.Key `json:"device"`
}

func (a *app) answerJoined(j joined) error {
	return a.p.Answer(j, func(w io.Writer) { fmt.Fprintf(w, "joined: interface %s, address %s\n", j.Interface, j.Address) })
}

// joinLaunch is what the interface's device needs to know: a device of its own,
// because the agent has the other. It is listed first, which takes the owner's key;
// root does without once that is done.
func (a *app) joinLaunch(ctx context.Context) (l launch, err error) {
	w, err := a.way()
	if err != nil {
		return l, err
	}
	do := func(c *swarm.Conn) error {
		d, err := a.listedInterface(ctx, c)
		if err != nil {
			return err
		}
		l = launch{Socket: w.socket, Peers: w.peers, Network: d.network.String(), Settings: d.Settings, Owner: d.owner, Seed: d.key.Seed()}
		if w.ticket != nil {
			l.Ticket = w.ticket.String()
		}
		return nil
	}
	key, err := kit.LoadDevice(a.dir().Interface())
	if os.Geteuid() != 0 || err != nil {
		return l, a.withSwarm(ctx, do)
	}
	owner, err := a.owner()
	if err != nil {
		return l, err
	}
	c, err := w.dial(ctx, swarm.Config{Key: func() (ed25519.PrivateKey, error) { return key, nil }, Owner: owner, Logger: a.logger()}, a.p.Note)
	if err != nil {
		return l, err
	}
	defer closing(c, &err)
	return l, do(c)
}

// listedInterface is the device of this machine's interface, made and listed where
// there is none yet.
func (a *app) listedInterface(ctx context.Context, c *swarm.Conn) (ownDevice, error) {
	d, err := a.joined(ctx, c)
	if errors.Is(err, fs.ErrNotExist) {
		d.key, _, err = kit.MakeDevice(a.dir().Interface())
		if err == nil {
			d.mesh, err = kit.MeshKey(d.key)
		}
		if err == nil {
			err = sameOwner(a.dir().Interface(), a.dir().Config)
		}
	}
	if err != nil {
		return d, err
	}
	if listed, err := isListed(ctx, c, d); listed || err != nil {
		return d, err
	}
	name := deviceName(os.Hostname)
	if name != "" {
		name += "-net"
	}
	return d, a.list(ctx, c, d, name)
}

// isListed says whether the owner lists a device, as a node tells it: a lie costs
// nothing but that it does not work.
func isListed(ctx context.Context, c *swarm.Conn, d ownDevice) (bool, error) {
	raws, err := c.API().OwnerStatements(ctx, d.owner)
	if err != nil {
		return false, err
	}
	for _, o := range viewOf(d.network, stmt.Key{}, raws).Devices(d.owner) {
		if o.Key == stmt.KeyOf(d.key) && o.MeshKey == stmt.Key(d.mesh.PublicKey()) {
			return true, nil
		}
	}
	return false, nil
}

// sameOwner gives a file that root has made in a user's folder to the user.
func sameOwner(file, dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || owner.Uid == 0 {
		return nil
	}
	return os.Lchown(file, int(owner.Uid), int(owner.Gid))
}
