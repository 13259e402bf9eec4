package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
)

// What is no socket is somebody's file, and stays.
func TestListenSocketReplacesOnlySockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "formd-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("file"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(at("folder"), 0o700), os.Symlink(at("file"), at("link"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "folder", "link"} {
		l, err := listenSocket(at(name))
		var p *api.Problem
		if !errors.As(err, &p) || p.Exit != api.ExitFailed || p.Hint == "" {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	if b, err := os.ReadFile(at("link")); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	for _, name := range []string{"dead", "new/socket"} {
		l, err := listenSocket(at(name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := listenSocket(at(name)); api.ExitOf(err) != api.ExitFailed {
			t.Errorf("%s is taken from a formd that answers: %v", name, err)
		}
		l.Close()
	}
}
