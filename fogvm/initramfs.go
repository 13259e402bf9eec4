package fogvm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/u-root/u-root/pkg/cpio"
)

// initramfs builds, or finds in cacheDir, the guest's initramfs: a newc archive
// with guestBinary as /init, followed by the base's modules archive (the kernel
// unpacks concatenated archives in turn). The name is the hash of its parts, so
// equal parts give the same file and a changed one never overwrites a file that
// a VM may boot from. It returns the file's path.
func initramfs(cacheDir, guestBinary, modules string) (string, error) {
	key := sha256.New()
	for _, part := range []string{guestBinary, modules} {
		f, err := os.Open(part)
		if err != nil {
			return "", fmt.Errorf("initramfs: %w", err)
		}
		n, err := io.Copy(key, f)
		f.Close()
		if err != nil {
			return "", fmt.Errorf("initramfs: read %s: %w", part, err)
		}
		fmt.Fprintf(key, "|%d|", n)
	}
	path := filepath.Join(cacheDir, "initramfs-"+hex.EncodeToString(key.Sum(nil)[:16]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	tmp, err := os.CreateTemp(cacheDir, ".initramfs-*")
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := writeInitramfs(tmp, guestBinary, modules); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	// World-readable: QEMU opens it under a user of its own. Not synced: after a
	// crash of the machine no VM runs, and the cache is emptied (see cleanCache).
	if err := errors.Join(tmp.Chmod(0o444), os.Rename(tmp.Name(), path)); err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	return path, nil
}

// writeInitramfs is deterministic: fixed order, times, owners and inodes.
func writeInitramfs(w io.Writer, guestBinary, modules string) error {
	binary, err := os.ReadFile(guestBinary)
	if err != nil {
		return err
	}
	records := []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.Directory("proc", 0o755), cpio.Directory("sys", 0o755),
		// The kernel opens the console for process 1 before /dev is mounted.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("init", string(binary), 0o755),
	}
	cpio.MakeAllReproducible(records)
	for i := range records {
		records[i].Ino = uint64(i + 1)
	}
	out := cpio.Newc.Writer(w)
	if err := cpio.WriteRecords(out, records); err != nil {
		return err
	}
	if err := cpio.WriteTrailer(out); err != nil {
		return err
	}
	f, err := os.Open(modules)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// cleanCache removes initramfs files that keep does not name. What is kept must
// be in use by a VM that runs, as only that proves the machine has not crashed
// since it was written.
func cleanCache(cacheDir string, keep map[string]bool) error {
	entries, err := os.ReadDir(cacheDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if path := filepath.Join(cacheDir, e.Name()); !keep[path] {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
