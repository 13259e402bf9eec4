package whole

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Who reads while others write sees one of the contents, whole; nothing is left
// beside the file.
func TestWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	contents := [][]byte{bytes.Repeat([]byte("a"), 100<<10), bytes.Repeat([]byte("b"), 50<<10), {}}
	if err := Write(path, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, len(contents))
	for _, c := range contents {
		go func() {
			var err error
			for range 20 {
				err = errors.Join(err, Write(path, c, 0o640))
			}
			done <- err
		}()
	}
	for ended := 0; ended < len(contents); {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) && len(got) > 0 {
			t.Fatalf("%d bytes are none of the contents", len(got))
		}
		select {
		case err := <-done:
			if ended++; err != nil {
				t.Fatal(err)
			}
		default:
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	alone(t, dir, "file")
}

// alone checks that a folder holds nothing else.
func alone(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

// What cannot be written leaves what was there, says which file, and clears up.
func TestNotWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "is", "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"is": nil, "not/there": fs.ErrNotExist} {
		path := filepath.Join(dir, name)
		err := Write(path, []byte("x"), 0o600)
		if err == nil || !strings.Contains(err.Error(), "write "+path+": ") || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	alone(t, dir, "is")
}
