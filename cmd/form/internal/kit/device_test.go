package kit

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/formthefog/formation/cmd/internal/keystore"
)

// A device's WireGuard key follows from its own for ever: it is in the owner's
// statements.
func TestMeshKey(t *testing.T) {
	key, err := MeshKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := key.PublicKey().String(), "UPNgZ2qu8LEHgH4vBdMLQceCpw8kR1u+2YOcs6zPX0s="; got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
	if key[0]&7 != 0 || key[31]&0xc0 != 0x40 {
		t.Error("the key is not clamped")
	}
	other, err := MeshKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, ed25519.SeedSize)))
	if err != nil || other == key {
		t.Errorf("another device has the same key (%v)", err)
	}
}

func TestDeviceIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kit", "device.pem")
	if _, err := LoadDevice(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: %v", err)
	}
	key, made, err := MakeDevice(path)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	again, made, err := MakeDevice(path)
	if err != nil || made || !again.Equal(key) {
		t.Errorf("the second time: another key, made %v, %v", made, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := MakeDevice(path); !errors.Is(err, keystore.ErrExposed) {
		t.Errorf("a key that others can read: %v", err)
	}
}
