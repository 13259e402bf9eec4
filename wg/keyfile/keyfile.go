// Package keyfile keeps a WireGuard private key in a file.
//
// Not guaranteed: that of two who make one at once both have the same.
package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/store/whole"
)

var (
	// ErrOpen: others than its owner may read or write a key's file.
	ErrOpen = errors.New("others may read the key's file")
	// ErrNoKey: a file holds something else.
	ErrNoKey = errors.New("no WireGuard key")
)

// maxKeyFile bounds a file with a key, in bytes: base64 and a newline.
const maxKeyFile = 64

// Load reads a private key from a file as wg genkey writes it, or makes one
// where there is no file. Errors wrap ErrOpen, ErrNoKey or the system's.
func Load(path string) (wgtypes.Key, error) {
	key, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = wgtypes.GeneratePrivateKey(); err != nil {
			return wgtypes.Key{}, fmt.Errorf("make a key: %w", err)
		}
		return key, whole.Write(path, []byte(key.String()+"\n"), 0o600)
	}
	return key, err
}

func read(path string) (wgtypes.Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return wgtypes.Key{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return wgtypes.Key{}, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return wgtypes.Key{}, fmt.Errorf("%s: %w (mode %04o)", path, ErrOpen, mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxKeyFile {
		return wgtypes.Key{}, fmt.Errorf("%s: %w: it is too long", path, ErrNoKey)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(b)))
	if err != nil || key == (wgtypes.Key{}) {
		return wgtypes.Key{}, fmt.Errorf("%s: %w", path, ErrNoKey)
	}
	return key, nil
}
