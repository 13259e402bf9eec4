package kit

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func testDir(t *testing.T) Dir {
	d := t.TempDir()
	return Dir{Config: filepath.Join(d, "config"), Data: filepath.Join(d, "data"), Cache: filepath.Join(d, "cache")}
}

func TestDefaultDir(t *testing.T) {
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	for _, c := range []struct {
		name, config string
		env          map[string]string
		want         Dir
	}{
		{"home", "", map[string]string{"HOME": "/h"}, Dir{"/h/.config/form", "/h/.local/share/form", "/h/.cache/form"}},
		{"xdg", "", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "/e"}, Dir{"/c/form", "/d/form", "/e/form"}},
		{"relative xdg is ignored", "", map[string]string{"HOME": "/h", "XDG_DATA_HOME": "d"}, Dir{"/h/.config/form", "/h/.local/share/form", "/h/.cache/form"}},
		{"flag", "/k", map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/c"}, Dir{"/k", "/h/.local/share/form", "/h/.cache/form"}},
	} {
		if got := DefaultDir(c.config, env(c.env)); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestSaveLoad(t *testing.T) {
	d := testDir(t)
	if _, err := Load(d); !errors.Is(err, ErrNone) {
		t.Fatalf("Load without a kit: %v, want ErrNone", err)
	}
	want := Config{
		API: "unix:///run/x.sock", Hosts: []string{"/ip4/192.0.2.1/tcp/1/p2p/Q"}, Ticket: "form1x", Owner: "12D3Koo",
		KeyFile: "k.age", PasswordFile: "/p", SSHKeys: []string{"ssh-ed25519 AAAA me"}, BasePublishers: []string{"a"}, JoinFormnet: true,
	}
	if err := Save(d, want); err != nil {
		t.Fatal(err)
	}
	got, err := Load(d)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Load = %+v, %v; want %+v", got, err, want)
	}
	for path, mode := range map[string]os.FileMode{d.File(): 0o600, d.Config: 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode().Perm(), err, mode)
		}
	}
	if got.KeyPath(d) != filepath.Join(d.Config, "k.age") || got.PasswordPath(d) != "/p" {
		t.Errorf("paths %s, %s", got.KeyPath(d), got.PasswordPath(d))
	}
	left, err := filepath.Glob(filepath.Join(d.Config, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"hosts = 1":               "f:1:9: ",
		"\nticket = \"a\"\nx = 1": "f:3:1: unknown key \"x\"",
		"ticket = ":               "f:1:",
	} {
		_, err := Parse("f", []byte(in))
		var bad *ConfigError
		if !errors.As(err, &bad) || !strings.HasPrefix(bad.Text, want) {
			t.Errorf("Parse(%q): %v, want %s…", in, err, want)
		}
	}
}

// A write that cannot be finished leaves the old file and nothing else.
func TestWriteFileKeepsTheOld(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "taken")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(target, []byte("x")); err == nil {
		t.Fatal("a folder was replaced by a file")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

func TestSSHKey(t *testing.T) {
	owner := ed25519.NewKeyFromSeed(make([]byte, 32))
	path := filepath.Join(t.TempDir(), "ssh", "id_ed25519")
	if err := WriteSSHKey(path, owner); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := SSHKey(owner)
	if err != nil {
		t.Fatal(err)
	}
	line, err := AuthorizedKey(key)
	if err != nil || string(pub) != line+"\n" {
		t.Errorf("public key %q, want %q (%v)", pub, line, err)
	}
	parsed, _, _, _, err := ssh.ParseAuthorizedKey(pub)
	if err != nil || string(parsed.Marshal()) != string(signer.PublicKey().Marshal()) {
		t.Errorf("the halves do not fit: %v", err)
	}
	// Computed by another implementation (HMAC by hand, openssl). The same owner
	// has the same logins on every device: this value may never
	// change.
	const want = "SHA256:o7MN+T3CP34JiQNtpS6m42fjIoG3X+tSFoUvKJ5vWgc"
	if got := ssh.FingerprintSHA256(parsed); got != want {
		t.Errorf("fingerprint %s, want %s: derived keys must not change", got, want)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSSHKey(path, owner); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("an up-to-date key was rewritten (%v)", err)
	}
	if key.Equal(owner) {
		t.Error("the SSH key is the owner's key")
	}
}

func TestParseAuthorizedKey(t *testing.T) {
	const good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJFpPdILFZBbCN0aQ7i5C4Rr1CqUYYgZ4wr5hvVzFhmX"
	for in, want := range map[string]string{
		good: good, "  " + good + " me@x \n": good + " me@x", `command="x" ` + good + " c": good + " c",
	} {
		if got, err := ParseAuthorizedKey(in); err != nil || got != want {
			t.Errorf("ParseAuthorizedKey(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "ssh-ed25519 AAAA", good + "\n" + good, "# " + good} {
		if got, err := ParseAuthorizedKey(in); err == nil {
			t.Errorf("ParseAuthorizedKey(%q) = %q, want an error", in, got)
		}
	}
}

// FuzzParse: a configuration is refused with a place, or read.
func FuzzParse(f *testing.F) {
	f.Add([]byte("ticket = \"form1\"\n"))
	f.Add([]byte("[[[[\n"))
	f.Add([]byte("x = 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := Parse("config.toml", b)
		var bad *ConfigError
		if err != nil && (!errors.As(err, &bad) || !strings.HasPrefix(bad.Text, "config.toml:")) {
			t.Fatalf("%q", err)
		}
	})
}
