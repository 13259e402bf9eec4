// Package kit is the developer's kit: the folder with form's configuration, the
// owner's encrypted key and the SSH key made from it.
//
// Guarantees: files are written whole or not at all, mode 0600 in a folder of
// mode 0700; unknown keys in the configuration are errors; nothing here asks a
// question.
//
// Not guaranteed: that the SSH private key is secret from whoever reads the
// user's files. OpenSSH reads it, so it is not encrypted; it opens logins, and
// cannot sign for the owner.
package kit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/formthefog/formation/store/whole"
)

// ErrNone says that there is no kit yet.
var ErrNone = errors.New("there is no kit here yet")

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

// Dir is the kit's folder and the folders that go with it.
type Dir struct {
	Config string // $XDG_CONFIG_HOME/form
	Data   string // $XDG_DATA_HOME/form
	Cache  string // $XDG_CACHE_HOME/form
}

// DefaultDir follows the XDG base directories. config, when not empty, replaces
// the first of them.
func DefaultDir(config string, getenv func(string) string) Dir {
	under := func(env, home string) string {
		if d := getenv(env); filepath.IsAbs(d) {
			return filepath.Join(d, "form")
		}
		return filepath.Join(getenv("HOME"), home, "form")
	}
	d := Dir{
		Config: under("XDG_CONFIG_HOME", ".config"),
		Data:   under("XDG_DATA_HOME", ".local/share"),
		Cache:  under("XDG_CACHE_HOME", ".cache"),
	}
	if config != "" {
		d.Config = config
	}
	return d
}

// Key is where the owner's key lives.
func (d Dir) Key() string { return filepath.Join(d.Config, "key.age") }

// File is the configuration's path.
func (d Dir) File() string { return filepath.Join(d.Config, "config.toml") }

// SSHKey is the path of the SSH private key; the public one ends in ".pub".
func (d Dir) SSHKey() string { return filepath.Join(d.Config, "ssh", "id_ed25519") }

// Store is the folder of form's own packs.
func (d Dir) Store() string { return filepath.Join(d.Data, "store") }

// Config is config.toml. The zero value of every field is usable.
type Config struct {
	API            string   `toml:"api" json:"api"`                         // unix:///path of a local formd; empty: the default socket
	Hosts          []string `toml:"hosts" json:"hosts"`                     // multiaddrs with /p2p/… to ask when no formd runs here
	Ticket         string   `toml:"ticket" json:"-"`                        // the swarm's ticket: as secret as a password
	Owner          string   `toml:"owner" json:"owner"`                     // the public key of key-file: reading needs no password
	KeyFile        string   `toml:"key-file" json:"key_file"`               // the owner's key; relative to the kit's folder
	PasswordFile   string   `toml:"password-file" json:"password_file"`     // a file with the key's password; optional
	SSHKeys        []string `toml:"ssh-keys" json:"ssh_keys"`               // further public keys to authorise at every ship
	BasePublishers []string `toml:"base-publishers" json:"base_publishers"` // keys whose base names are trusted, beside the ticket's
	JoinFormnet    bool     `toml:"join-formnet" json:"join_formnet"`       // an interface on the mesh is wanted on this machine
}

const header = `# form's configuration, written by "form kit init". Every key may be left out.
#   api              unix:///path of a local formd
#   hosts            multiaddrs (ending in /p2p/...) to ask when no formd runs here
#   ticket           the swarm's ticket, from "form net invite"; keep it secret
#   owner            the public key of key-file, so that reading needs no password
#   key-file         the owner's key, relative to this folder
#   password-file    file that holds the key's password; without it: FORM_PASSWORD,
#                    FORM_PASSWORD_FILE, or a question
#   ssh-keys         further SSH public keys that every ship authorises
#   base-publishers  keys whose base names are trusted, beside the ticket's
#   join-formnet     an interface on the mesh is wanted on this machine

`

// Load reads config.toml. Without one the error is ErrNone.
func Load(d Dir) (Config, error) {
	var c Config
	f, err := os.Open(d.File())
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%s: %w", d.File(), ErrNone)
	}
	if err != nil {
		return c, fmt.Errorf("read the kit: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return c, fmt.Errorf("read %s: %w", d.File(), err)
	}
	if len(b) > maxFile {
		return c, &ConfigError{fmt.Sprintf("%s is over %d bytes", d.File(), maxFile)}
	}
	return Parse(d.File(), b)
}

// ConfigError is a config.toml that cannot be used, one FILE:LINE:COL: message
// a line.
type ConfigError struct{ Text string }

func (e *ConfigError) Error() string { return e.Text }

// Parse reads a configuration; name is for messages. Errors are *ConfigError.
func Parse(name string, b []byte) (Config, error) {
	var c Config
	dec := toml.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err := dec.Decode(&c)
	var strict *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case err == nil:
		return c, nil
	case errors.As(err, &strict):
		var lines []string
		for i := range strict.Errors {
			row, col := strict.Errors[i].Position()
			lines = append(lines, fmt.Sprintf("%s:%d:%d: unknown key %q", name, row, col, strings.Join(strict.Errors[i].Key(), ".")))
		}
		return c, &ConfigError{strings.Join(lines, "\n")}
	case errors.As(err, &bad):
		row, col := bad.Position()
		return c, &ConfigError{fmt.Sprintf("%s:%d:%d: %s", name, row, col, strings.TrimPrefix(bad.Error(), "toml: "))}
	}
	return c, &ConfigError{fmt.Sprintf("%s: %v", name, err)}
}

// Save writes config.toml.
func Save(d Dir, c Config) error {
	b, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the kit: %w", err)
	}
	return WriteFile(d.File(), append([]byte(header), b...))
}

// KeyPath is where the owner's key of this configuration lives.
func (c Config) KeyPath(d Dir) string { return d.resolve(c.KeyFile, d.Key()) }

// PasswordPath is the configured password file, or "".
func (c Config) PasswordPath(d Dir) string { return d.resolve(c.PasswordFile, "") }

func (d Dir) resolve(p, none string) string {
	switch {
	case p == "":
		return none
	case filepath.IsAbs(p):
		return p
	}
	return filepath.Join(d.Config, p)
}

// WriteFile writes a private file durably: a reader sees the old content or the
// new, also after a crash. Its folder is made, mode 0700.
func WriteFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return whole.Write(path, b, 0o600)
}
