package guest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogOnAFullDisk: what cannot be written is lost and counted, what feeds the
// log never notices, and it goes on when there is room again.
func TestLogOnAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.log")
	r, err := OpenRotatingFile(path, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	write := func(line string) {
		t.Helper()
		// As the application's pipe is read.
		if n, err := io.Copy(io.MultiWriter(r, io.Discard), strings.NewReader(line)); err != nil || int(n) != len(line) {
			t.Errorf("%q: %d bytes, %v", line, n, err)
		}
	}
	write("one\n")
	good := r.f
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r.f = full
	write("two\n")
	write("three\n")
	r.f = good
	write("four\n")
	write("five\n")
	if got, err := os.ReadFile(path); err != nil || string(got) != "one\n\n[10 bytes of output lost]\nfour\nfive\n" {
		t.Errorf("%q, %v", got, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestLogAfterAFailedRotation: a log whose folder is gone for a time comes back.
func TestLogAfterAFailedRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "app.log")
	r, err := OpenRotatingFile(path, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, step := range []struct {
		do   func()
		line string
	}{
		{func() {}, "one two\n"},
		{func() { move(dir, dir+"-away") }, "lost\n"},
		{func() { move(dir+"-away", dir) }, "three\n"},
	} {
		step.do()
		if n, err := r.Write([]byte(step.line)); err != nil || n != len(step.line) {
			t.Errorf("%q: %d, %v", step.line, n, err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(got), "[5 bytes of output lost]\nthree\n") {
		t.Errorf("%q, %v", got, err)
	}
	// The new file cannot be opened: the next write tries again.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.f.Close()
	r.f = nil
	if n, err := r.Write([]byte("four\n")); n != 5 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "four\n" {
		t.Errorf("%q, %v", got, err)
	}
}
