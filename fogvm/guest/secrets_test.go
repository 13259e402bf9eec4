package guest

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// folder renders what a folder holds: name, mode, content.
func folder(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, e := range list {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %v %q\n", e.Name(), info.Mode(), b)
	}
	return out.String()
}

func TestVault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	me := account{UID: os.Getuid(), GID: os.Getgid()}
	v := &vault{write: func(reader account, secrets []Secret) error { return writeSecrets(dir, reader, secrets) }}
	a, b := Secret{Name: "A", Value: []byte("1\n")}, Secret{Name: "tls.key", Value: []byte{0, 1}}
	if err := v.replace([]Secret{a, b}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("written before it is known for whom")
	}
	if err := v.unlock(me); err != nil {
		t.Fatal(err)
	}
	if got, want := folder(t, dir), "A -r-------- \"1\\n\"\ntls.key -r-------- \"\\x00\\x01\"\n"; got != want {
		t.Errorf("holds\n%swant\n%s", got, want)
	}
	// A reader that has a file open keeps what it had; a new one sees the new.
	old, err := os.Open(filepath.Join(dir, "A"))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	kept, err := os.Stat(filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	// What an interrupted write left is no obstacle.
	if err := os.WriteFile(filepath.Join(dir, ".A.new"), []byte("part"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Value = []byte("2")
	if err := v.replace([]Secret{a, b}); err != nil {
		t.Fatal(err)
	}
	if got, want := folder(t, dir), "A -r-------- \"2\"\ntls.key -r-------- \"\\x00\\x01\"\n"; got != want {
		t.Errorf("holds\n%swant\n%s", got, want)
	}
	buf := make([]byte, 8)
	if n, err := old.Read(buf); err != nil || string(buf[:n]) != "1\n" {
		t.Errorf("an open file changed: %q, %v", buf[:n], err)
	}
	if again, err := os.Stat(filepath.Join(dir, "tls.key")); err != nil || !os.SameFile(kept, again) {
		t.Errorf("a secret that did not change was replaced: %v", err)
	}
	if err := v.replace(nil); err != nil || folder(t, dir) != "" {
		t.Errorf("after all were removed: %v, %s", err, folder(t, dir))
	}
	bad := []Secret{{Name: "../x"}, {Name: ".x"}, {Name: ""}, {Name: "ok", Value: []byte("v")}}
	if err := v.replace(bad); err == nil || !strings.Contains(err.Error(), `"../x"`) || folder(t, dir) != "ok -r-------- \"v\"\n" {
		t.Errorf("bad names: %v, %s", err, folder(t, dir))
	}
}

// Variables are those that can be, and win over the pack's.
func TestSecretVariables(t *testing.T) {
	v := &vault{write: func(account, []Secret) error { return nil }}
	if err := v.replace([]Secret{
		{Name: "DB", Value: []byte("secret"), Env: true}, {Name: "FILE", Value: []byte("x")},
		{Name: "tls.key", Value: []byte("x"), Env: true}, {Name: "ZERO", Value: []byte{0}, Env: true},
	}); err != nil {
		t.Fatal(err)
	}
	env, err := newEnvironment([]EnvVar{{Key: "DB", Value: "default"}, {Key: "A", Value: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	got := env.forEntrypoint(account{Name: "root"}, Config{}, v.env()...)
	for _, want := range []string{"DB=secret", "A=1"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %q", want, got)
		}
	}
	if n := len(slices.DeleteFunc(got, func(kv string) bool { return !strings.HasPrefix(kv, "DB=") && !strings.Contains(kv, "x") })); n != 1 {
		t.Errorf("%d variables of secrets: %q", n, got)
	}
	for what, text := range map[string]string{"/etc/environment": env.environmentFile(), "the profile": env.profile()} {
		if strings.Contains(text, "secret") {
			t.Errorf("%s holds a secret:\n%s", what, text)
		}
	}
}

func TestSecretDoesNotShowItself(t *testing.T) {
	s := Secret{Name: "DB", Value: []byte("hunter2")}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "all", []Secret{s})
	held := struct{ S []Secret }{[]Secret{s}}
	text := log.String() + fmt.Sprint(s, held) + fmt.Sprintf("%v %+v %#v %s", held, held, held, s)
	if strings.Contains(text, "hunter2") || strings.Contains(text, "104 117") || strings.Contains(text, "0x68") {
		t.Errorf("shows itself: %s", text)
	}
}
