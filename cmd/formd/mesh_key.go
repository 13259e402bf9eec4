package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/wg"
)

// maxKeyFile bounds a file with a WireGuard key, in bytes: base64 and a newline.
const maxKeyFile = 64

// loadMeshKey reads the private key of this node's WireGuard, as wg genkey writes
// it, or makes one where there is none. One that others may read is refused.
func loadMeshKey(path string) (wg.Key, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return wg.Key{}, fmt.Errorf("mesh key: %w", err)
		}
		return key, writeFile(path, []byte(key.String()+"\n"))
	}
	if err != nil {
		return wg.Key{}, fmt.Errorf("mesh key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return wg.Key{}, fmt.Errorf("mesh key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return wg.Key{}, api.Problemf(api.ExitNotAllowed, "mesh key: others may read %s (mode %04o)", path, info.Mode().Perm()).
			WithHint("chmod 600 " + path + "; if somebody may have read it, remove it: the next start makes another")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return wg.Key{}, fmt.Errorf("mesh key: %w", err)
	}
	if len(b) > maxKeyFile {
		return wg.Key{}, fmt.Errorf("mesh key: %s is longer than a key", path)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(b)))
	if err != nil || key == (wg.Key{}) {
		return wg.Key{}, api.Problemf(api.ExitFailed, "mesh key: %s holds no WireGuard key", path).
			WithHint("remove it: the next start makes another")
	}
	return key, nil
}
