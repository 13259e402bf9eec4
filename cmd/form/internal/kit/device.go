package kit

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/cmd/internal/keystore"
)

// meshInfo separates a device's WireGuard key from every other use of its key.
const meshInfo = "formation/mesh-device/1"

// Device is where this machine's own key lives, by which it takes part in the mesh.
// It belongs to the machine: a copy of it on another is the same device, and the
// two cut each other off.
func (d Dir) Device() string { return filepath.Join(d.Config, "device.pem") }

// Interface is where the key of this machine's permanent interface lives, which is
// another device.
func (d Dir) Interface() string { return filepath.Join(d.Config, "interface.pem") }

// LoadDevice reads a device's key; the error wraps fs.ErrNotExist when there is
// none. Like the SSH key it is not encrypted: it opens connections in the owner's
// name, until the owner removes the device, and signs nothing for the owner.
func LoadDevice(path string) (ed25519.PrivateKey, error) {
	key, err := keystore.Load(path, func() ([]byte, error) { return nil, errors.New("a device's key has no password") })
	if err != nil {
		return nil, fmt.Errorf("device: %w", err)
	}
	return key, nil
}

// MakeDevice is LoadDevice that makes the key where there is none. made says that
// it did.
func MakeDevice(path string) (key ed25519.PrivateKey, made bool, err error) {
	key, err = LoadDevice(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, false, fmt.Errorf("device: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, false, fmt.Errorf("device: %w", err)
	}
	if err := keystore.Save(path, key, nil); err != nil {
		return nil, false, fmt.Errorf("device: %w", err)
	}
	return key, true, nil
}

// MeshKey derives a device's private WireGuard key by HKDF-SHA256, so that a device
// is one file, and whoever has a delegated device's key can be on the mesh.
func MeshKey(device ed25519.PrivateKey) (wgtypes.Key, error) {
	seed, err := hkdf.Key(sha256.New, device.Seed(), nil, meshInfo, wgtypes.KeyLen)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("derive the mesh key: %w", err)
	}
	key := wgtypes.Key(seed)
	key[0] &= 248 // clamped, as `wg genkey` does and standard clients want it
	key[31] = key[31]&127 | 64
	return key, nil
}
