package mesh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
)

// loadKey is the guest's private key, made when the disk is new. One that cannot
// be read is an error, as peers know it.
func loadKey(dir string) (wg.Key, error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return wg.Key{}, fmt.Errorf("mesh: key: %w", err)
		}
		return key, writeFile(path, []byte(key.String()+"\n"))
	}
	if err != nil {
		return wg.Key{}, fmt.Errorf("mesh: key: %w", err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil {
		return wg.Key{}, fmt.Errorf("mesh: key: %w", err)
	}
	return key, nil
}
