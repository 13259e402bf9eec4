package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A module whose packages pass, fail, skip, panic and do not build, run by the
// real go test: its event stream is the input.
func TestCountsARealRun(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":          "module m\n\ngo 1.21\n",
		"a/a_test.go":     "package a\nimport \"testing\"\nfunc TestOK(t *testing.T) { t.Run(\"sub\", func(*testing.T) {}) }\nfunc TestSkip(t *testing.T) { t.Skip(\"no\") }\n",
		"b/b_test.go":     "package b\nimport \"testing\"\nfunc TestBad(t *testing.T) { t.Error(\"because of this\") }\n",
		"c/c_test.go":     "package c\nimport \"testing\"\nfunc TestC(t *testing.T) { undefined() }\n",
		"d/d_test.go":     "package d\nimport (\"os\"; \"testing\")\nfunc TestMain(m *testing.M) { os.Exit(3) }\n",
		"none/nothing.go": "package none\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-json", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	stream, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var live bytes.Buffer
	if err := newCounter(&live).read(bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"because of this", "undefined: undefined", "ok  \tm/a", "FAIL\tm/b", "FAIL\tm/d"} {
		if !strings.Contains(live.String(), want) {
			t.Errorf("the live output lacks %q:\n%s", want, &live)
		}
	}
	file := filepath.Join(dir, "events")
	if err := os.WriteFile(file, stream, 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := sum(&out, []string{file}); !errors.Is(err, errFailed) {
		t.Errorf("sum: %v, want errFailed", err)
	}
	if want := "2 passed, 3 failed, 1 skipped\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got %q, want it to end in %q", &out, want)
	}
}

func TestStepsCount(t *testing.T) {
	file := filepath.Join(t.TempDir(), "steps")
	if err := step(file, "good", []string{"true"}); err != nil {
		t.Errorf("good step: %v", err)
	}
	if err := step(file, "bad", []string{"sh", "-c", "echo why; exit 1"}); !errors.Is(err, errFailed) {
		t.Errorf("bad step: %v", err)
	}
	var out bytes.Buffer
	if err := sum(&out, []string{file}); !errors.Is(err, errFailed) {
		t.Errorf("sum: %v", err)
	}
	if want := "failed: check bad\n1 passed, 1 failed, 0 skipped\n"; out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}

func TestNothingIsNotSuccess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := sum(&bytes.Buffer{}, []string{file}); err == nil {
		t.Error("a run without tests passed")
	}
}
