package fogvm

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestDurable: a file that decides over a disk, and the disk itself, are on the
// disk whole before they have their names, and the names after.
func TestDurable(t *testing.T) {
	ext4 := func(data []byte) bool {
		return len(data) == MinDisk && bytes.Equal(data[0x438:0x43a], []byte{0x53, 0xef})
	}
	for _, c := range []struct {
		name  string
		make  func(path string) error
		whole func(data []byte) bool
	}{
		{specFile, func(path string) error { return saveJSONFile(path, "content") },
			func(data []byte) bool { return string(data) == `"content"` }},
		{diskFile, func(path string) error { return makeDisk(t.Context(), path, MinDisk) }, ext4},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), c.name)
			var synced []string
			syncFile = func(f *os.File) error {
				_, err := os.Stat(path)
				if info, statErr := f.Stat(); statErr != nil {
					t.Fatal(statErr)
				} else if info.IsDir() {
					if f.Name() != filepath.Dir(path) || err != nil {
						t.Errorf("folder %s is synced when the name's state is: %v", f.Name(), err)
					}
					synced = append(synced, "folder")
					return f.Sync()
				}
				data, readErr := os.ReadFile(f.Name())
				if readErr != nil || !c.whole(data) || !os.IsNotExist(err) {
					t.Errorf("synced with %d bytes, %v, when the name's state is: %v", len(data), readErr, err)
				}
				synced = append(synced, "file")
				return f.Sync()
			}
			defer func() { syncFile = (*os.File).Sync }()
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(synced, []string{"file", "folder"}) {
				t.Errorf("synced %v", synced)
			}
			if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// TestFailedSyncLeavesNothing: what is not on the disk does not get its name.
func TestFailedSyncLeavesNothing(t *testing.T) {
	syncFile = func(*os.File) error { return os.ErrDeadlineExceeded }
	defer func() { syncFile = (*os.File).Sync }()
	dir := t.TempDir()
	if saveJSONFile(filepath.Join(dir, specFile), 1) == nil || makeDisk(t.Context(), filepath.Join(dir, diskFile), MinDisk) == nil {
		t.Error("a failed sync is not an error")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
