package base

import (
	"crypto/ed25519"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A build that is killed takes mmdebstrap along, and the next removes its files;
// those of a build that runs it leaves alone.
func TestKilled(t *testing.T) {
	if _, err := os.Stat(keyring); err != nil {
		t.Skip("debian-archive-keyring is not installed")
	}
	const workEnv = "FORMATION_TEST_KILLED"
	if work := os.Getenv(workEnv); work != "" {
		key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
		_, _, err := Build(t.Context(), Options{WorkDir: work, Store: &fakeStore{}, Key: key, Epoch: epoch})
		t.Fatalf("the build ended by itself: %v", err)
	}
	work, bin := t.TempDir(), t.TempDir()
	runs, ended := filepath.Join(bin, "runs"), filepath.Join(bin, "ended")
	script := "#!/bin/sh\ntrap 'touch " + ended + "; exit 1' TERM\ntouch " + runs + "\nwhile :; do sleep 0.1; done\n"
	if err := os.WriteFile(filepath.Join(bin, "mmdebstrap"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$", "-test.count=1")
	cmd.Env = append(os.Environ(), workEnv+"="+work, "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exists := func(name string) func() bool {
		return func() bool { _, err := os.Stat(name); return err == nil }
	}
	within(t, "mmdebstrap runs", exists(runs))
	mine := func() int {
		w, err := newWorkDir(t.Context(), work)
		if err != nil {
			t.Fatal(err)
		}
		list, err := os.ReadDir(work)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.remove(); err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := mine(); n != 2 {
		t.Errorf("beside a running build: %d work folders, want 2", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the killed build ended well")
	}
	within(t, "mmdebstrap has cleaned up", exists(ended))
	within(t, "the folder of the killed build is gone", func() bool { return mine() == 1 })
}

// within polls a condition until a deadline that is generous for a busy machine.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
