package crdt

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/formthefog/formation/crdt/stmt"
)

func contentOf(t *testing.T, d *Disk, name string) []byte {
	t.Helper()
	f, err := d.Open(name, false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A process that is killed leaves what it wrote; power that is lost, what was
// synced, and any part of the rest. Neither lets the one before go on.
func TestDiskLosesWhatWasNotSynced(t *testing.T) {
	write := func(d *Disk) file {
		f, err := d.Open("log", false)
		if err == nil {
			_, err = f.Write([]byte("synced."))
		}
		if err == nil {
			err = errors.Join(f.Sync(), d.SyncDir())
		}
		if err == nil {
			_, err = f.Write([]byte("not synced"))
		}
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	d := NewDisk()
	f := write(d)
	next := d.Kill()
	if got := contentOf(t, next, "log"); string(got) != "synced.not synced" {
		t.Errorf("after a kill the file holds %q", got)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, errOff) {
		t.Errorf("a killed process still writes: %v", err)
	}
	lost := 0
	for seed := range uint64(100) {
		d := NewDisk()
		write(d)
		got := contentOf(t, d.LosePower(rand.New(rand.NewPCG(seed, 0))), "log")
		if !bytes.HasPrefix(got, []byte("synced.")) {
			t.Fatalf("seed %d: power was lost, and %q is left", seed, got)
		}
		if string(got) != "synced.not synced" {
			lost++
		}
	}
	if lost < 50 {
		t.Errorf("of 100 losses of power %d lost something", lost)
	}
}

// A Replica on a Disk finds again what it acknowledged, and has it alone.
func TestReplicaOnADisk(t *testing.T) {
	w := newWorld(t)
	cfg := ReplicaConfig{Disk: NewDisk(), Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}
	r, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); err == nil {
		t.Error("two replicas share a disk")
	}
	if _, err := r.Submit(t.Context(), w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode)); err != nil {
		t.Fatal(err)
	}
	want := r.Fingerprint()
	cfg.Disk = cfg.Disk.LosePower(rand.New(rand.NewPCG(1, 0)))
	if r, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	if r.Fingerprint() != want {
		t.Error("what was acknowledged is not there after a loss of power")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
