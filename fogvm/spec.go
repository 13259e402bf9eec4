package fogvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Files of a run directory.
const (
	specFile   = "vm.json"    // shimSpec: what to run; written by the Manager
	stateFile  = "state.json" // Status: written by the shim
	diskFile   = "disk.raw"
	lockFile   = "shim.lock" // locked by the live shim
	shimLog    = "shim.log"
	consoleLog = "console.log"
	appLog     = "app.log"
	cacheDir   = ".cache"
)

// shimSpec is all a shim needs.
type shimSpec struct {
	VM          VM            `json:"vm"`
	QEMU        string        `json:"qemu"`
	Accel       string        `json:"accel"`
	Initramfs   string        `json:"initramfs"`
	UID         uint32        `json:"uid,omitempty"` // QEMU's; 0: as the shim
	GID         uint32        `json:"gid,omitempty"`
	StopTimeout time.Duration `json:"stop_timeout"`
	// Egress are Config.Egress.
	Egress []netip.Prefix `json:"egress,omitempty"`
}

// writeJSONFile replaces a file atomically for who reads it. It is not durable:
// what a shim says of processes means nothing after a crash of the machine.
func writeJSONFile(path string, v any) error {
	return replaceJSONFile(path, v, func(*os.File) error { return nil })
}

// saveJSONFile also makes the file outlive a crash of the machine: whole, either
// the old or the new.
func saveJSONFile(path string, v any) error {
	if err := replaceJSONFile(path, v, syncFile); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func replaceJSONFile(path string, v any, complete func(*os.File) error) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = complete(tmp)
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", filepath.Base(path), err), os.Remove(tmp.Name()))
	}
	return nil
}

// syncFile brings a file's content to the disk. A variable for tests, which
// look at what is there at that moment.
var syncFile = (*os.File).Sync

// syncFolder brings the names in a folder to the disk.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(syncFile(f), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", filepath.Base(dir), err)
	}
	return nil
}

func readJSONFile(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return nil
}
