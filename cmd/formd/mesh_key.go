package main

import (
	"errors"
	"fmt"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/keyfile"
)

// loadMeshKey is the private key of this node's WireGuard, made where there is
// none.
func loadMeshKey(path string) (wg.Key, error) {
	key, err := keyfile.Load(path)
	switch {
	case errors.Is(err, keyfile.ErrOpen):
		return key, api.Problemf(api.ExitNotAllowed, "mesh key: %v", err).
			WithHint("chmod 600 " + path + "; if somebody may have read it, remove it: the next start makes another")
	case errors.Is(err, keyfile.ErrNoKey):
		return key, api.Problemf(api.ExitFailed, "mesh key: %v", err).WithHint("remove it: the next start makes another")
	case err != nil:
		return key, fmt.Errorf("mesh key: %w", err)
	}
	return key, nil
}
