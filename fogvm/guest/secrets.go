package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// SecretsDir is where the guest finds its secrets: one file each, on a tmpfs,
// for the user that runs the entrypoint alone to read.
const SecretsDir = "/run/secrets"

// Secret is one value that is written to no disk, on the host or in the guest.
// It does not show its value when it is printed or logged.
type Secret struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
	// Env: the entrypoint gets it as a variable too, from its next start on.
	Env bool `json:"env,omitempty"`
}

// String hides the value.
func (s Secret) String() string { return "secret " + s.Name }

// GoString hides the value.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the value.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// EqualSecrets says whether two sets, in the same order, are the same.
func EqualSecrets(a, b []Secret) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || a[i].Env != b[i].Env || !bytes.Equal(a[i].Value, b[i].Value) {
			return false
		}
	}
	return true
}

// vault is the guest's secrets. The host sends the whole set before the
// configuration and whenever it changes; it is written once the user who may read
// it is known.
type vault struct {
	write func(reader account, secrets []Secret) error // called by one at a time

	mu      sync.Mutex
	secrets []Secret
	reader  account
	open    bool
}

// replace sets the secrets.
func (v *vault) replace(secrets []Secret) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.secrets = secrets
	if !v.open {
		return nil
	}
	return v.write(v.reader, secrets)
}

// unlock says who may read them.
func (v *vault) unlock(reader account) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reader, v.open = reader, true
	return v.write(reader, v.secrets)
}

// env is what of them the entrypoint gets as variables, as "K=V".
func (v *vault) env() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []string
	for _, s := range v.secrets {
		if s.Env && envKey.MatchString(s.Name) && bytes.IndexByte(s.Value, 0) < 0 {
			out = append(out, s.Name+"="+string(s.Value))
		}
	}
	return out
}

// writeSecrets makes dir hold just these, each replaced as a whole so that no
// reader sees a part of one. A name that is no plain file's is left out and told.
func writeSecrets(dir string, reader account, secrets []Secret) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("secrets: %w", err)
	}
	var errs []error
	keep := map[string]bool{}
	for _, s := range secrets {
		if s.Name == "" || s.Name[0] == '.' || strings.ContainsAny(s.Name, "/\x00") {
			errs = append(errs, fmt.Errorf("secret %.80q: no file's name", s.Name))
			continue
		}
		keep[s.Name] = true
		errs = append(errs, writeSecret(dir, reader, s))
	}
	have, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("secrets: %w", errors.Join(append(errs, err)...))
	}
	for _, f := range have {
		if !keep[f.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, f.Name())))
		}
	}
	return errors.Join(errs...)
}

func writeSecret(dir string, reader account, s Secret) error {
	path, tmp := filepath.Join(dir, s.Name), filepath.Join(dir, "."+s.Name+".new")
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, s.Value) {
		return nil
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	err = f.Chown(reader.UID, reader.GID)
	if err == nil {
		_, err = f.Write(s.Value)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, errors.Join(err, os.Remove(tmp)))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	return nil
}
