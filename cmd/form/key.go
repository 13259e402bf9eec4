package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/crdt/stmt"
)

func newKey(a *app) *cobra.Command {
	return group("key", "the owner's key", newKeyNew(a), newKeyImport(a), newKeyShow(a),
		group("device", "keys that speak for the owner", newDeviceAdd(a), newDeviceLs(a), newDeviceRm(a)))
}

type keyOptions struct {
	protection
	out   string
	words int
	yes   bool
}

func (o *keyOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.out, "out", "", "the key file to write (default: the kit's)")
	f.StringVar(&o.passwordFile, "password-file", "", "file that holds the key's password")
	f.BoolVar(&o.plain, "no-password", false, "do not encrypt the key")
	f.BoolVar(&o.force, "force", false, "replace a key that is there; without its words it is lost")
	f.BoolVarP(&o.yes, "yes", "y", false, "ask nothing")
}

func newKeyNew(a *app) *cobra.Command {
	var o keyOptions
	c := &cobra.Command{
		Use: "new", Short: "make a new owner's key",
		Long: `Makes a key, shows its words once on stderr, and prints its peer ID and public key.
Write the words down: they are the only way to get the key back.`,
		Args: noArgs(),
		RunE: func(*cobra.Command, []string) error { return a.runKeyNew(o) },
	}
	o.addFlags(c.Flags())
	c.Flags().IntVar(&o.words, "words", 24, "how many words: 12 or 24")
	return c
}

func newKeyImport(a *app) *cobra.Command {
	var o keyOptions
	c := &cobra.Command{
		Use: "import [FILE]", Short: "restore an owner's key from its words",
		Long: `Reads the 12 or 24 words (or a raw seed of 64 hexadecimal digits) from FILE, or
from standard input, and writes the key. A passphrase that was used with the
words is taken from FORM_PASSPHRASE. Everything
that key has shipped is yours again: form ls.`,
		Args: argsBetween(0, 1, "at most one FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			file := "-"
			if len(args) == 1 {
				file = args[0]
			}
			return a.runKeyImport(file, o)
		},
	}
	o.addFlags(c.Flags())
	return c
}

func newKeyShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "the owner's peer ID and public key", Args: noArgs(),
		RunE: func(*cobra.Command, []string) error {
			k, err := a.ownKey()
			if err != nil {
				return err
			}
			return a.answerKey(k, "")
		},
	}
}

func (a *app) runKeyNew(o keyOptions) error {
	a.assumeYes = o.yes
	path, own, err := a.freePath(o)
	if err != nil {
		return err
	}
	words, key, err := makeKey(o.words)
	if err != nil {
		return err
	}
	if err := a.storeKey(path, key, o.protection, own); err != nil {
		return err
	}
	a.showWords(words)
	return a.answerKey(stmt.KeyOf(key), path)
}

func (a *app) runKeyImport(file string, o keyOptions) error {
	a.assumeYes = o.yes
	path, own, err := a.freePath(o)
	if err != nil {
		return err
	}
	words, err := a.readWords(file)
	if err != nil {
		return err
	}
	key, err := a.keyFromWords(words)
	if err != nil {
		return err
	}
	if err := a.storeKey(path, key, o.protection, own); err != nil {
		return err
	}
	return a.answerKey(stmt.KeyOf(key), path)
}

// makeKey makes words and the key they stand for.
func makeKey(n int) (words string, key ed25519.PrivateKey, err error) {
	if n != 12 && n != 24 {
		return "", nil, cli.Errorf(api.ExitUsage, "--words: %d is neither 12 nor 24", n)
	}
	if words, err = keystore.NewMnemonic(n); err != nil {
		return "", nil, err
	}
	key, err = keystore.FromMnemonic(words, "")
	return words, key, err
}

func (a *app) keyFromWords(words string) (ed25519.PrivateKey, error) {
	key, err := keystore.Import(words, a.getenv("FORM_PASSPHRASE"))
	if err != nil {
		return nil, cli.Errorf(api.ExitUsage, "%w", err).Hint("12 or 24 English words in their order, separated by spaces, or a seed of 64 hexadecimal digits")
	}
	return key, nil
}

func (a *app) readWords(file string) (string, error) {
	if file != "-" {
		b, err := readSmall(file)
		return strings.Join(strings.Fields(string(b)), " "), err
	}
	if a.interactive() {
		return a.readPassword("the 12 or 24 words (not shown): ")
	}
	b, err := readLimited(a.stdin, "standard input")
	return strings.Join(strings.Fields(string(b)), " "), err
}

// freePath is where a key may be written, and the kit's configuration if the key
// will be the kit's own.
func (a *app) freePath(o keyOptions) (path string, own *kit.Config, err error) {
	path, c, err := a.keyPath()
	if err != nil {
		return "", nil, err
	}
	if o.out != "" {
		path = o.out
	} else if a.getenv("FORM_KEY_FILE") == "" {
		own = &c
	}
	_, err = os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, own, nil
	case err != nil:
		return "", nil, err
	case !o.force:
		return "", nil, cli.Errorf(api.ExitFailed, "there is a key already: %s", path).
			Hint("another file: --out FILE").Hint("replace it, if its words are written down: --force")
	}
	return path, own, nil
}

// storeKey writes a key. As the kit's own it also enters the kit's configuration,
// c, which is written too, with the SSH key made from it.
func (a *app) storeKey(path string, key ed25519.PrivateKey, p protection, c *kit.Config) error {
	password, file, err := a.newPassword(p, passwordBeside(path))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if err := keystore.Save(path, key, []byte(password)); err != nil {
		return err
	}
	if c == nil {
		return nil
	}
	a.opened = key
	c.Owner, c.PasswordFile = stmt.KeyOf(key).String(), file
	if err := kit.Save(a.dir(), *c); err != nil {
		return err
	}
	return kit.WriteSSHKey(a.dir().SSHKey(), key)
}

// showWords shows the words of a new key, once.
func (a *app) showWords(words string) {
	var b strings.Builder
	b.WriteString("The words of the new key. Write them down now: they are shown this once, and\nlost words cannot be recovered by anyone.\n\n")
	for i, w := range strings.Fields(words) {
		fmt.Fprintf(&b, "%4d %-10s", i+1, w)
		if i%6 == 5 {
			b.WriteString("\n")
		}
	}
	a.p.Raw(b.String())
}

func (a *app) answerKey(k stmt.Key, path string) error {
	v := struct {
		PeerID    string `json:"peer_id"`
		PublicKey string `json:"public_key"` // hex
		File      string `json:"file,omitempty"`
	}{k.String(), fmt.Sprintf("%x", k[:]), path}
	return a.p.Answer(v, func(w io.Writer) {
		cli.Pairs(w, [2]string{"peer ID", v.PeerID}, [2]string{"public key", v.PublicKey}, [2]string{"file", v.File})
	})
}
