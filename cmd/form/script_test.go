package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	if os.Getenv("FORM_TEST_MAIN") != "" {
		main() // a test, or what it has started, runs form as a program
	}
	testscript.Main(m, map[string]func(){"form": main})
}

// TestScript runs testdata/script: what a user types and sees, without a daemon.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			for _, v := range []string{"FORM_KEY_FILE", "FORM_PASSWORD", "PASSWORD", "FORM_PASSWORD_FILE", "FORM_TICKET", "FORM_PEER", "FORM_CONFIG", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"} {
				e.Setenv(v, "")
			}
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			// A daemon that happens to run on this machine must not answer.
			e.Setenv("FORM_API", "unix://"+filepath.Join(e.WorkDir, "none.sock"))
			return os.MkdirAll(filepath.Join(e.WorkDir, "home"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": cmdStatus},
	})
}

// cmdStatus runs a command and checks its exit code: status N COMMAND [ARG...].
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%q exits %d, want %d", args[1:], got, want)
	}
}
