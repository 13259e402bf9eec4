package kit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/crypto/ssh"
)

// sshInfo separates the SSH key from every other use of the owner's key.
const sshInfo = "formation/ssh-login/1"

// SSHKey derives the owner's SSH key by HKDF-SHA256, so that the words that
// restore the owner restore the logins too, on every device. The owner's key
// cannot be computed from it.
func SSHKey(owner ed25519.PrivateKey) (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, owner.Seed(), nil, sshInfo, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive the SSH key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// AuthorizedKey is the public half in authorized_keys form, without a line end.
func AuthorizedKey(key ed25519.PrivateKey) (string, error) {
	pub, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return "", fmt.Errorf("SSH public key: %w", err)
	}
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub))) + " form-kit", nil
}

// WriteSSHKey makes sure that path holds the owner's SSH key, and path.pub its
// public half. An up-to-date pair is left alone.
func WriteSSHKey(path string, owner ed25519.PrivateKey) error {
	key, err := SSHKey(owner)
	if err != nil {
		return err
	}
	line, err := AuthorizedKey(key)
	if err != nil {
		return err
	}
	pub := []byte(line + "\n")
	have, err := os.ReadFile(path + ".pub")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("SSH key: %w", err)
	}
	if _, err := os.Stat(path); err == nil && bytes.Equal(have, pub) {
		return nil
	}
	block, err := ssh.MarshalPrivateKey(key, "form-kit")
	if err != nil {
		return fmt.Errorf("SSH key: %w", err)
	}
	if err := WriteFile(path, pem.EncodeToMemory(block)); err != nil {
		return err
	}
	return WriteFile(path+".pub", pub)
}

// ParseAuthorizedKey checks one authorized_keys line and returns it without
// options, trimmed.
func ParseAuthorizedKey(line string) (string, error) {
	pub, comment, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(bytes.TrimSpace(rest)) > 0 {
		return "", fmt.Errorf("not one SSH public key (\"ssh-ed25519 AAAA… name\")")
	}
	out := string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub)))
	if comment != "" {
		out += " " + comment
	}
	return out, nil
}

// RandomPassword is a password of at least 128 random bits, for a kit whose
// password nobody will type.
func RandomPassword() string { return rand.Text() }
