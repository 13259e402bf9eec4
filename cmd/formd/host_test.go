package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/formthefog/formation/cmd/internal/config"
)

// What VMs here have written does not shrink what the node offers.
func TestOfferCountsOwnDisks(t *testing.T) {
	const written = 64 << 20
	c := config.Config{Data: t.TempDir(), CPUs: 2, Memory: 1 << 30}
	dir := filepath.Join(c.Data, "vms", "web-0")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(disk, make([]byte, written), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 1<<40); err != nil { // sparse: only what is written counts
		t.Fatal(err)
	}
	got, err := occupied(filepath.Join(c.Data, "vms"))
	if err != nil || got < written || got > written+1<<20 {
		t.Errorf("occupied: %d bytes, %v; want %d", got, err, written)
	}
	if got, err := occupied(filepath.Join(c.Data, "absent")); got != 0 || err != nil {
		t.Errorf("occupied by nothing: %d, %v", got, err)
	}
	r, err := offer(c)
	if err != nil || r.CPUs != 2 || r.Memory != 1<<30 || r.Disk == 0 || r.Disk > 1<<50 {
		t.Errorf("offer: %+v, %v", r, err)
	}
}
