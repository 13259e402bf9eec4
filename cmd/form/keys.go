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
	"strings"

	"github.com/charmbracelet/huh"
	"golang.org/x/term"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/crdt/stmt"
)

// keyPath is the owner's key file: FORM_KEY_FILE, else the kit's.
func (a *app) keyPath() (path string, c kit.Config, err error) {
	c, err = a.kit()
	if p := a.getenv("FORM_KEY_FILE"); p != "" {
		return p, c, err
	}
	return c.KeyPath(a.dir()), c, err
}

// key opens the owner's key. It is opened once.
func (a *app) key() (ed25519.PrivateKey, error) {
	if a.opened != nil {
		return a.opened, nil
	}
	path, c, err := a.keyPath()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, a.noKey(path)
	}
	key, err := keystore.Load(path, func() ([]byte, error) { return a.password(path, c) })
	if err != nil {
		return nil, err
	}
	a.opened = key
	return key, nil
}

func (a *app) noKey(path string) error {
	if a.getenv("FORM_KEY_FILE") != "" {
		return cli.Errorf(api.ExitNotFound, "FORM_KEY_FILE: %s does not exist", path)
	}
	e := cli.Errorf(api.ExitNotFound, "there is no key yet (%s)", path)
	return e.Hint("make a kit: form kit init").Hint("or name a key: FORM_KEY_FILE=FILE")
}

// speaksFor is the owner whose device the caller's key is, by FORM_OWNER; zero
// when it is not set.
func (a *app) speaksFor() (stmt.Key, error) {
	text := a.getenv("FORM_OWNER")
	if text == "" {
		return stmt.Key{}, nil
	}
	k, err := stmt.ParseKey(text)
	if err != nil {
		return k, cli.Errorf(api.ExitUsage, "FORM_OWNER: %w", err).Hint("the owner's peer ID: form key show, with the owner's key")
	}
	return k, nil
}

// ownKey is the caller's own key, which is the owner's or a device's.
func (a *app) ownKey() (stmt.Key, error) {
	if a.getenv("FORM_OWNER") == "" {
		return a.owner()
	}
	key, err := a.key()
	if err != nil {
		return stmt.Key{}, err
	}
	return stmt.KeyOf(key), nil
}

// owner is who the caller is or speaks for, without opening the key where the kit
// says it.
func (a *app) owner() (stmt.Key, error) {
	if k, err := a.speaksFor(); err != nil || !k.IsZero() {
		return k, err
	}
	if a.opened == nil && a.getenv("FORM_KEY_FILE") == "" {
		c, err := a.kit()
		if err != nil {
			return stmt.Key{}, err
		}
		if c.Owner != "" {
			k, err := stmt.ParseKey(c.Owner)
			if err != nil {
				return k, cli.Errorf(api.ExitUsage, "owner in %s: %w", a.dir().File(), err)
			}
			return k, nil
		}
	}
	key, err := a.key()
	if err != nil {
		return stmt.Key{}, err
	}
	return stmt.KeyOf(key), nil
}

// passwordBeside is where a password that form made for a key is kept: every
// key has its own.
func passwordBeside(key string) string { return key + ".password" }

// passwordFile is where the password of an existing key may be: what the kit
// names for its own key, and beside any other.
func (a *app) passwordFile(path string, c kit.Config) string {
	if named := c.PasswordPath(a.dir()); named != "" && path == c.KeyPath(a.dir()) {
		return named
	}
	if _, err := os.Stat(passwordBeside(path)); err == nil {
		return passwordBeside(path)
	}
	return c.PasswordPath(a.dir())
}

// password opens an existing key: FORM_PASSWORD, FORM_PASSWORD_FILE,
// PASSWORD (the seed's name), the key's password file, else a question where somebody is there to answer.
func (a *app) password(path string, c kit.Config) ([]byte, error) {
	given, err := a.givenPassword(a.passwordFile(path, c))
	if err != nil || given != "" {
		return []byte(given), err
	}
	if !a.interactive() {
		return nil, cli.Errorf(api.ExitNotAllowed, "%s is encrypted, and nobody is there to type its password", path).
			Hint("set FORM_PASSWORD, or FORM_PASSWORD_FILE to a file that holds it")
	}
	if a.typed, err = a.readPassword("password of " + path + ": "); err != nil {
		return nil, err
	}
	return []byte(a.typed), nil
}

// givenPassword is the password that the environment or a file gives; "" for
// none.
func (a *app) givenPassword(file string) (string, error) {
	if p := a.getenv("FORM_PASSWORD"); p != "" {
		return p, nil
	}
	if f := a.getenv("FORM_PASSWORD_FILE"); f != "" {
		file = f
	} else if p := a.getenv("PASSWORD"); p != "" { // may be another program's: what is form's own comes first
		return p, nil
	}
	if file == "" {
		return "", nil
	}
	b, err := readSmall(file)
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	p := strings.TrimRight(string(b), "\r\n")
	if p == "" {
		return "", cli.Errorf(api.ExitUsage, "password file %s is empty", file)
	}
	return p, nil
}

// readSmall reads a file that a person wrote.
func readSmall(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, file)
}

func readLimited(r io.Reader, name string) ([]byte, error) {
	const most = 64 << 10
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, err
	}
	if len(b) > most {
		return nil, cli.Errorf(api.ExitUsage, "%s has more than %d bytes", name, most)
	}
	return b, nil
}

func (a *app) readPassword(prompt string) (string, error) {
	f, ok := a.stdin.(*os.File)
	if !ok {
		return "", cli.Errorf(api.ExitUsage, "standard input is no terminal")
	}
	if _, err := fmt.Fprint(a.stderr, prompt); err != nil {
		return "", fmt.Errorf("ask for the password: %w", err)
	}
	b, err := term.ReadPassword(int(f.Fd()))
	if _, perr := fmt.Fprintln(a.stderr); err == nil {
		err = perr
	}
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return string(b), nil
}

// ask runs a wizard on the terminal.
func (a *app) ask(ctx context.Context, f *huh.Form) error {
	err := f.WithInput(a.stdin).WithOutput(a.stderr).RunWithContext(ctx)
	if errors.Is(err, huh.ErrUserAborted) {
		return context.Canceled
	}
	return err
}

// protection says how a new key is kept.
type protection struct {
	plain        bool   // unencrypted, because the user asked for it
	passwordFile string // --password-file
	force        bool   // replace what is there
}

// newPassword is the password of a key that is being written; "" with plain.
// With nobody to ask it makes one, kept in the file beside, which is not another
// key's: one that is there is replaced only by force.
func (a *app) newPassword(p protection, beside string) (password, file string, err error) {
	if p.plain {
		return "", "", nil
	}
	if p.passwordFile != "" {
		b, err := readSmall(p.passwordFile)
		if err != nil {
			return "", "", fmt.Errorf("password file: %w", err)
		}
		if password = strings.TrimRight(string(b), "\r\n"); password == "" {
			return "", "", cli.Errorf(api.ExitUsage, "password file %s is empty", p.passwordFile)
		}
		file, err = filepath.Abs(p.passwordFile)
		return password, file, err
	}
	if password, err = a.givenPassword(""); err != nil || password != "" {
		return password, "", err
	}
	if a.interactive() && !a.assumeYes {
		return a.askNewPassword()
	}
	if _, err := os.Lstat(beside); err == nil && !p.force {
		return "", "", cli.Errorf(api.ExitFailed, "there is a password already: %s", beside).
			Hint("give the new key another: FORM_PASSWORD or --password-file FILE").Hint("replace it, if nothing needs it any more: --force")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	password = kit.RandomPassword()
	if err := kit.WriteFile(beside, []byte(password+"\n")); err != nil {
		return "", "", err
	}
	a.p.Note("no password was given: a random one is in %s\nhint: give your own with FORM_PASSWORD, --password-file, or --no-password for none", beside)
	return password, beside, nil
}

func (a *app) askNewPassword() (password, file string, err error) {
	for {
		first, err := a.readPassword("new password for the key (at least 8 characters): ")
		if err != nil {
			return "", "", err
		}
		if len(first) < 8 {
			a.p.Warn("that is shorter than 8 characters")
			continue
		}
		again, err := a.readPassword("the same again: ")
		if err != nil {
			return "", "", err
		}
		if first == again {
			return first, "", nil
		}
		a.p.Warn("the two are not the same")
	}
}
