package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/store/whole"
)

// ErrPinned: the host says that the guest is another than what it was told first.
var ErrPinned = errors.New("the host says otherwise than when this disk was new")

// Pin is who the guest is, as it was told first.
type Pin struct {
	Network string   `json:"network"`
	Root    stmt.Key `json:"root"`
	stmt.Settings
	Owner    stmt.Key `json:"owner"`
	Node     stmt.Key `json:"node"`
	Instance string   `json:"instance"`
	Slot     int      `json:"slot"`
}

// maxNetwork is more than any network's name has.
const maxNetwork = 256

// pinOf is what a configuration says.
func pinOf(cfg guest.Config) (Pin, error) {
	if cfg.Mesh == nil {
		return Pin{}, errors.New("mesh: no configuration")
	}
	m := cfg.Mesh
	p := Pin{Network: m.Network, Root: m.Root, Settings: m.Settings, Owner: m.Owner, Node: m.Node, Instance: cfg.Instance, Slot: cfg.Slot}
	if _, err := crdt.ParseDocID(p.Instance); err != nil {
		return Pin{}, fmt.Errorf("mesh: instance: %w", err)
	}
	if err := p.Check(); err != nil {
		return Pin{}, fmt.Errorf("mesh: %w", err)
	}
	if len(p.Network) > maxNetwork || p.Owner.IsZero() || p.Node.IsZero() || p.Slot < 0 || p.Slot >= crdt.MaxReplicas {
		return Pin{}, errors.New("mesh: the configuration names no network, owner, node or slot")
	}
	return p, nil
}

func (p Pin) network() stmt.NetworkID { return p.NetworkID(p.Network, p.Root) }

// Names of files in the guest's folder.
const (
	pinFile  = "pin.json"
	keyFile  = "key"
	heldFile = "statements"
)

// hold pins p, or compares it with what was pinned before.
func hold(dir string, p Pin) error {
	path := filepath.Join(dir, pinFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if raw, err = json.Marshal(p); err != nil {
			return fmt.Errorf("mesh: pin: %w", err)
		}
		return whole.Write(path, raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("mesh: pin: %w", err)
	}
	var first Pin
	if err := json.Unmarshal(raw, &first); err != nil {
		return fmt.Errorf("mesh: pin: %w", err)
	}
	for _, x := range []struct {
		what string
		same bool
	}{
		{"network", first.network() == p.network()}, {"owner", first.Owner == p.Owner},
		{"instance", first.Instance == p.Instance}, {"slot", first.Slot == p.Slot}, {"node", first.Node == p.Node},
	} {
		if !x.same {
			return fmt.Errorf("mesh: %s: %w", x.what, ErrPinned)
		}
	}
	return nil
}
