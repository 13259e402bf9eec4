package main

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// A node that waits for the state it has lost says so, and what to do.
func TestStateCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		log   string // before the start
		state string
		word  string // of the detail
	}{
		"first start, not synchronised": {"", "warn", "nothing is decided"},
		"damaged":                       {"formation/log/1\n" + strings.Repeat("x", 64), "warn", "damaged"},
	} {
		dir := t.TempDir()
		if tc.log != "" {
			if err := os.WriteFile(filepath.Join(dir, "state.log"), []byte(tc.log), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r, err := crdt.Open(crdt.ReplicaConfig{Dir: dir, Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Network: stmt.NewNetworkID("t", stmt.Key{}), Engine: crdt.NewModel()})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c := stateCheck(r, false); c.State != tc.state || !strings.Contains(c.Detail, tc.word) || c.Fix == "" {
			t.Errorf("%s: %+v", name, c)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

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
