// Package keystore makes, restores and keeps owner keys.
//
// A key comes from BIP-39 words (English, 12 or 24, with an optional
// passphrase) by SLIP-0010 for Ed25519 at [Path]. At rest it is a PKCS #8 PEM
// block, encrypted with age under a password unless the caller asks for an
// unencrypted file.
//
// Guarantees: the same words and passphrase give the same key for ever; a file
// is written whole, durably and with mode 0600, or not at all, and is not read if
// other users can; a file from elsewhere cannot make Load use more than [MaxFile] bytes of it or more than
// 1 GiB of memory.
//
// Not guaranteed: that secrets leave memory when they are no longer needed (Go
// may have copied them), or that a password withstands guessing: its cost per
// guess is about 64 MiB and a fifth of a second.
package keystore

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/formthefog/formation/store/whole"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrPassword: the password does not open the file.
	ErrPassword = errors.New("wrong password")
	// ErrFormat: the file is no key file of this package.
	ErrFormat = errors.New("not a key file")
	// ErrExposed: others than the file's owner may read or write it.
	ErrExposed = errors.New("the key file is open to other users")
)

const (
	// MaxFile bounds a key file in bytes.
	MaxFile = 64 << 10
	// workFactor is the scrypt log2(N) of new files. It is two less than age's
	// default, because a command line opens its key at every call.
	workFactor = 16
	// maxWorkFactor bounds what a file may ask for: 1 GiB of memory.
	maxWorkFactor = 20

	pemType = "PRIVATE KEY"
)

// Save writes key to path, replacing what is there. An empty password writes it
// unencrypted. The folder must exist.
func Save(path string, key ed25519.PrivateKey, password []byte) error {
	b, err := encode(key, password, workFactor)
	if err != nil {
		return fmt.Errorf("save key: %w", err)
	}
	if err := whole.Write(path, b, 0o600); err != nil {
		return fmt.Errorf("save key: %w", err)
	}
	return nil
}

func encode(key ed25519.PrivateKey, password []byte, factor int) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("a key of %d bytes", len(key))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	plain := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
	if len(password) == 0 {
		return plain, nil
	}
	recipient, err := age.NewScryptRecipient(string(password))
	if err != nil {
		return nil, err
	}
	recipient.SetWorkFactor(factor)
	var out bytes.Buffer
	text := armor.NewWriter(&out)
	w, err := age.Encrypt(text, recipient)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), text.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Load reads a key file. password is called only if the file is encrypted; its
// error is returned as it is. Errors wrap ErrPassword, ErrFormat or ErrExposed
// where they apply. An encrypted file must be the owner's alone, too: its
// password can be guessed at leisure by whoever has a copy.
func Load(path string, password func() ([]byte, error)) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat() // of what is open, whatever the path names by now
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("load key: %s: %w (mode %04o): chmod 600 %s", path, ErrExposed, mode, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("load key: %w", err)
	}
	if len(b) > MaxFile {
		return nil, fmt.Errorf("load key: %s: %w: over %d bytes", path, ErrFormat, MaxFile)
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte(armor.Header)) {
		p, err := password()
		if err != nil {
			return nil, err
		}
		if b, err = decrypt(b, p); err != nil {
			return nil, fmt.Errorf("load key: %s: %w", path, err)
		}
	}
	key, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("load key: %s: %w", path, err)
	}
	return key, nil
}

func decrypt(b, password []byte) ([]byte, error) {
	identity, err := age.NewScryptIdentity(string(password))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPassword, err) // it is empty
	}
	identity.SetMaxWorkFactor(maxWorkFactor)
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(b)), identity)
	var no *age.NoIdentityMatchError
	switch {
	case errors.As(err, &no):
		return nil, ErrPassword
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, MaxFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return plain, nil
}

func decode(b []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: not one PEM block of type %q", ErrFormat, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: it holds a %T, not an Ed25519 key", ErrFormat, parsed)
	}
	return key, nil
}
