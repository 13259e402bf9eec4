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
	"slices"
	"strings"

	"github.com/charmbracelet/huh"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

// The answers to the key question.
const (
	keyNew    = "new"
	keyImport = "import"
	keyNone   = "none"
	keyKeep   = "keep"
)

type kitOptions struct {
	protection
	yes      bool
	ticket   string
	hosts    []string
	api      string
	key      string
	words    int
	wordFile string
	sshKeys  []string
	join     bool

	entered string // words typed into the wizard
}

func newKit(a *app) *cobra.Command {
	return group("kit", "set up this machine", newKitInit(a),
		group("operator", "for who runs nodes", newOperatorConfig(a)))
}

func newKitInit(a *app) *cobra.Command {
	var o kitOptions
	c := &cobra.Command{
		Use: "init", Short: "make the developer's kit: key, swarm, SSH key",
		Long: `Asks which swarm to use and which key to own things with, and writes the kit's
folder. Every question has a flag; --yes asks nothing and takes the defaults: a
new key, and the local formd. Run again it keeps the key and changes what its
flags say.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runKitInit(cmd.Context(), o, cmd.Flags().Changed)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "ask nothing, take the defaults")
	f.BoolVar(&o.force, "force", false, "begin anew: replace the configuration, and the key with --key new or import")
	f.StringVar(&o.ticket, "ticket", "", "the swarm's ticket")
	f.StringArrayVar(&o.hosts, "host", nil, "multiaddr of a peer to ask when no formd runs here (repeatable)")
	f.StringVar(&o.api, "api", "", "unix socket of the local formd (default: the usual place)")
	f.StringVar(&o.key, "key", "", "new, import or none (default: new; a key that is there is kept)")
	f.IntVar(&o.words, "words", 24, "words of a new key: 12 or 24")
	f.StringVar(&o.wordFile, "words-file", "", "file with the words, for --key import (- is standard input)")
	f.StringVar(&o.passwordFile, "password-file", "", "file that holds the key's password")
	f.BoolVar(&o.plain, "no-password", false, "do not encrypt the key")
	f.StringArrayVar(&o.sshKeys, "ssh-key", nil, "further SSH public key, or a file of them, to let into every instance (repeatable)")
	f.BoolVar(&o.join, "join-formnet", false, "have an interface on the mesh on this machine: says how to join")
	return c
}

func (a *app) runKitInit(ctx context.Context, o kitOptions, given func(string) bool) error {
	a.assumeYes = o.yes
	if !o.yes && !a.interactive() {
		return cli.Errorf(api.ExitUsage, "kit init asks questions, and standard input or error is no terminal").
			Hint("take the defaults: form kit init --yes").Hint("or answer by flags: form kit init --help")
	}
	dir := a.dir()
	c, err := kit.Load(dir)
	if err != nil && !errors.Is(err, kit.ErrNone) && !o.force {
		return err
	}
	if o.force {
		c = kit.Config{Owner: c.Owner, KeyFile: c.KeyFile, PasswordFile: c.PasswordFile}
	}
	_, err = os.Lstat(c.KeyPath(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	haveKey := err == nil
	if o.key == "" {
		o.key = keyNew
		if haveKey {
			o.key = keyKeep
		}
	}
	if !o.yes {
		if err := a.askKit(ctx, &o, haveKey); err != nil {
			return err
		}
	}
	if err := o.check(haveKey); err != nil {
		return err
	}
	if err := o.into(&c, given); err != nil {
		return err
	}
	return a.writeKit(o, c)
}

// check judges every answer before anything is written.
func (o *kitOptions) check(haveKey bool) error {
	switch {
	case !slices.Contains([]string{keyNew, keyImport, keyNone, keyKeep}, o.key):
		return cli.Errorf(api.ExitUsage, "--key: %q is not new, import or none", o.key)
	case haveKey && !o.force && (o.key == keyNew || o.key == keyImport):
		return cli.Errorf(api.ExitFailed, "there is a key already, and replacing it loses it unless its words are written down").
			Hint("keep it: leave --key out").Hint("replace it: --force")
	case o.key == keyImport && o.wordFile == "" && o.entered == "":
		return cli.Errorf(api.ExitUsage, "--key import needs the words").Hint("--words-file FILE, or --words-file - for standard input")
	case o.words != 12 && o.words != 24:
		return cli.Errorf(api.ExitUsage, "--words: %d is neither 12 nor 24", o.words)
	}
	for _, h := range o.hosts {
		if err := checkHost(h); err != nil {
			return err
		}
	}
	if err := checkAPI(o.api); err != nil {
		return err
	}
	return checkTicket(o.ticket)
}

// checkAPI accepts what --api and FORM_API do.
func checkAPI(s string) error {
	if s == "" || strings.HasPrefix(s, "/") || strings.HasPrefix(s, "unix://") && len(s) > len("unix://") {
		return nil
	}
	return cli.Errorf(api.ExitUsage, "%q is not unix:///PATH", s).Hint("a peer's multiaddr goes to --peer")
}

// checkConfig judges every value of a kit's configuration, and the files that it
// names; the key is not opened.
func checkConfig(d kit.Dir, c kit.Config) error {
	var errs []error
	bad := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	bad("api", checkAPI(c.API))
	for _, h := range c.Hosts {
		bad("hosts", checkHost(h))
	}
	bad("ticket", checkTicket(c.Ticket))
	if c.Owner != "" {
		_, err := stmt.ParseKey(c.Owner)
		bad("owner", err)
	}
	for _, f := range []struct{ key, named, path string }{
		{"key-file", c.KeyFile, c.KeyPath(d)}, {"password-file", c.PasswordFile, c.PasswordPath(d)},
	} {
		if f.named != "" || f.key == "key-file" && c.Owner != "" {
			bad(f.key, checkFile(f.path))
		}
	}
	for _, s := range c.SSHKeys {
		_, err := kit.ParseAuthorizedKey(s)
		bad("ssh-keys", err)
	}
	for _, s := range c.BasePublishers {
		_, err := stmt.ParseKey(s)
		bad("base-publishers", err)
	}
	return errors.Join(errs...)
}

// checkFile wants a file that can be read.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", path)
	}
	return err
}

func checkTicket(s string) error {
	if s == "" {
		return nil
	}
	if _, err := stmt.ParseTicket(s); err != nil {
		return cli.Errorf(api.ExitUsage, "%w", err).Hint("a node that holds the network's root key prints one: form net invite")
	}
	return nil
}

func checkHost(s string) error {
	if _, err := peer.AddrInfoFromString(s); err != nil {
		return cli.Errorf(api.ExitUsage, "%q is no multiaddr that ends in /p2p/12D3Koo…", s).
			Hint("formd prints it when it is ready, and `form node status` shows it")
	}
	return nil
}

// into writes the answers into the configuration; what was neither asked nor
// given stays.
func (o *kitOptions) into(c *kit.Config, given func(string) bool) error {
	if o.ticket != "" || given("ticket") {
		c.Ticket = o.ticket
	}
	if len(o.hosts) > 0 {
		c.Hosts = o.hosts
	}
	if o.api != "" {
		c.API = o.api
	}
	if o.join || given("join-formnet") {
		c.JoinFormnet = o.join
	}
	for _, s := range o.sshKeys {
		lines, err := readSSHKeys(s)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if !slices.Contains(c.SSHKeys, l) {
				c.SSHKeys = append(c.SSHKeys, l)
			}
		}
	}
	return nil
}

// askKit is the wizard. It asks what no flag has said.
func (a *app) askKit(ctx context.Context, o *kitOptions, haveKey bool) error {
	choices := []huh.Option[string]{
		huh.NewOption("make a new key", keyNew), huh.NewOption("restore one from its words", keyImport),
		huh.NewOption("none: FORM_KEY_FILE will name one", keyNone),
	}
	if haveKey {
		choices = []huh.Option[string]{huh.NewOption("keep the key that is here", keyKeep)}
	}
	host := strings.Join(o.hosts, " ")
	swarm := huh.NewGroup(
		huh.NewInput().Title("Ticket of the swarm").Description("form1…, from `form net invite`. Empty: the formd on this machine, or an open network.").
			Value(&o.ticket).Validate(checkTicket),
		huh.NewInput().Title("A peer to ask when no formd runs here").Description("A multiaddr that ends in /p2p/12D3Koo…; empty: those of the ticket.").
			Value(&host).Validate(func(s string) error {
			if s == "" {
				return nil
			}
			return checkHost(s)
		}),
	)
	key := huh.NewGroup(huh.NewSelect[string]().Title("The key that owns what you ship").Options(choices...).Value(&o.key))
	words := huh.NewGroup(huh.NewText().Title("Its 12 or 24 words").Value(&o.entered)).
		WithHideFunc(func() bool { return o.key != keyImport || o.wordFile != "" })
	mesh := huh.NewGroup(huh.NewConfirm().Title("Join formnet permanently?").
		Description("An interface by which every program here reaches your instances. It needs root; `form ssh`, `form proxy` and `form forward` do not need it.").
		Value(&o.join))
	if err := a.ask(ctx, huh.NewForm(swarm, key, words, mesh)); err != nil {
		return err
	}
	if host != "" {
		o.hosts = strings.Fields(host)
	}
	return nil
}

// kitAnswer is what kit init prints; never a secret.
type kitAnswer struct {
	Config    string `json:"config"`
	KeyFile   string `json:"key_file"`
	PeerID    string `json:"peer_id"`
	PublicKey string `json:"public_key"`
	SSHKey    string `json:"ssh_key"`
	Network   string `json:"network"`
}

// writeKit makes the key and writes everything; what can fail by what was given
// comes before the first file.
func (a *app) writeKit(o kitOptions, c kit.Config) error {
	path := c.KeyPath(a.dir())
	var key ed25519.PrivateKey
	var words string
	var err error
	switch o.key {
	case keyNew:
		words, key, err = makeKey(o.words)
	case keyImport:
		text := o.entered
		if o.wordFile != "" {
			text, err = a.readWords(o.wordFile)
		}
		if err == nil {
			key, err = a.keyFromWords(strings.Join(strings.Fields(text), " "))
		}
	}
	switch {
	case err != nil:
	case key != nil:
		err = a.storeKey(path, key, o.protection, &c)
	default:
		err = kit.Save(a.dir(), c)
	}
	if err != nil {
		return err
	}
	if words != "" {
		a.showWords(words)
	}
	return a.answerKit(o, path)
}

func (a *app) answerKit(o kitOptions, path string) error {
	c, err := a.kit()
	if err != nil {
		return err
	}
	v := kitAnswer{Config: a.dir().File()}
	if c.Owner != "" {
		k, err := stmt.ParseKey(c.Owner)
		if err != nil {
			return fmt.Errorf("owner: %w", err)
		}
		v.KeyFile, v.PeerID, v.PublicKey = path, k.String(), fmt.Sprintf("%x", k[:])
		v.SSHKey = a.dir().SSHKey() + ".pub"
	}
	if t, err := a.ticket(c); err == nil && t != nil {
		v.Network = t.Name
	}
	if c.JoinFormnet {
		line := "form net join --detach"
		if os.Geteuid() != 0 {
			line = "sudo " + line
		}
		a.p.Note("an interface on the mesh: %s", line)
	}
	if o.key == keyNone {
		a.p.Note("no key was made: set FORM_KEY_FILE, or form key new, form key import")
	}
	a.p.Note("next: form pack validate, form ship")
	return a.p.Answer(v, func(w io.Writer) {
		cli.Pairs(w, [2]string{"kit", v.Config}, [2]string{"key file", v.KeyFile}, [2]string{"peer ID", v.PeerID},
			[2]string{"public key", v.PublicKey}, [2]string{"SSH key", v.SSHKey}, [2]string{"network", v.Network})
	})
}

// newConfig is `form config`.
func newConfig(a *app) *cobra.Command {
	return group("config", "the kit's configuration", &cobra.Command{
		Use: "check [FILE]", Short: "check the kit's configuration (formd's: formd config check)",
		Args: argsBetween(0, 1, "at most one FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			file := a.dir().File()
			if len(args) == 1 {
				file = args[0]
			}
			return a.runConfigCheck(file)
		},
	})
}

func (a *app) runConfigCheck(file string) error {
	b, err := readSmall(file)
	if err != nil {
		return err
	}
	c, err := kit.Parse(file, b)
	if err != nil {
		return err
	}
	d := a.dir()
	d.Config = filepath.Dir(file) // what it names is relative to its folder
	if err := checkConfig(d, c); err != nil {
		return &kit.ConfigError{Text: fmt.Sprintf("%s: %v", file, err)}
	}
	v := struct {
		File string `json:"file"`
		OK   bool   `json:"ok"`
	}{file, true}
	return a.p.Answer(v, func(w io.Writer) { fmt.Fprintf(w, "%s: ok\n", file) })
}
