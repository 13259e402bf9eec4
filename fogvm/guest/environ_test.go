package guest

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestEnvironmentScopes(t *testing.T) {
	env, err := newEnvironment([]EnvVar{
		{Key: "A", Value: "1"}, {Scope: "system", Key: "A", Value: "it's \"2\""}, {Key: "PATH", Value: "/opt/bin"},
		{Scope: "user:bob", Key: "B", Value: "x\ny"}, {Scope: "user:bob", Key: "C", Value: `q"\z`},
		{Scope: "service:web", Key: "D", Value: "4"}, {Scope: "service:redis", Key: "E", Value: "5 6"},
	})
	if err != nil {
		t.Fatal(err)
	}
	bob := account{Name: "bob", Home: "/home/bob", Shell: "/bin/sh"}
	got := env.forUser(bob, "F=6")
	for _, want := range []string{`A=it's "2"`, "B=x\ny", "F=6", "PATH=/opt/bin", "HOME=/home/bob", "USER=bob"} {
		if !slices.Contains(got, want) {
			t.Errorf("user environment lacks %q: %q", want, got)
		}
	}
	if slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "D=") || strings.HasPrefix(s, "E=") }) {
		t.Errorf("a service's variables reach a user: %q", got)
	}
	app := env.forEntrypoint(account{Name: "root"}, Config{Name: "web", Instance: "i", Slot: 3})
	for _, want := range []string{"D=4", "FORMATION_SLOT=3", "FORMATION_INSTANCE=i"} {
		if !slices.Contains(app, want) {
			t.Errorf("entrypoint environment lacks %q: %q", want, app)
		}
	}
	if slices.ContainsFunc(app, func(s string) bool { return strings.HasPrefix(s, "E=") || strings.HasPrefix(s, "B=") }) {
		t.Errorf("another scope reaches the entrypoint: %q", app)
	}
	if got, want := env.defaultsFile("redis"), "E='5 6'\n"; got != want {
		t.Errorf("defaults: %q, want %q", got, want)
	}
	if got, want := env.environmentFile(), "A=\"it's \"2\"\"\nPATH=\"/opt/bin\"\n"; got != want {
		t.Errorf("/etc/environment: %q, want %q", got, want)
	}
	want := "# Written at each boot from the pack's ENV.\nexport A='it'\\''s \"2\"'\nexport PATH='/opt/bin'\n" +
		"case \"$(id -un)\" in\nbob)\n\texport B='x\ny'\n\texport C='q\"\\z'\n\t;;\nesac\n"
	if got := env.profile(); got != want {
		t.Errorf("profile:\n%s\nwant\n%s", got, want)
	}
	if got, want := setEnv(env.users["bob"]), "\tSetEnv \"C=q\\\"\\\\z\"\n"; got != want {
		t.Errorf("SetEnv: %q, want %q", got, want)
	}
}

func TestEnvironmentRefuses(t *testing.T) {
	for _, v := range []EnvVar{
		{Key: ""}, {Key: "1A"}, {Key: "A-B"}, {Key: "A", Value: "x\x00"}, {Scope: "user:", Key: "A"},
		{Scope: "user:../x", Key: "A"}, {Scope: "service:../../etc/passwd", Key: "A"}, {Scope: "planet", Key: "A"},
	} {
		if _, err := newEnvironment([]EnvVar{v}); err == nil {
			t.Errorf("%+v: accepted", v)
		}
	}
}

func TestSSHDConfig(t *testing.T) {
	env, err := newEnvironment([]EnvVar{{Scope: "user:a", Key: "X", Value: "two words"}})
	if err != nil {
		t.Fatal(err)
	}
	got := sshdConfig(Config{Users: []User{
		{Name: "b", SSHPasswordAuth: true, PasswordHash: "$6$h", DisableRoot: true},
		{Name: "a", DisableRoot: true},
		{Name: "c", SSHPasswordAuth: true, DisableRoot: true}, // has no password
	}}, env)
	for _, want := range []string{"PermitRootLogin no\n", "Match User a\n\tSetEnv \"X=two words\"\nMatch User b\n\tPasswordAuthentication yes\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "Match User c") || strings.Index(got, "PasswordAuthentication no") > strings.Index(got, "Match") {
		t.Errorf("wrong order or user:\n%s", got)
	}
	if !strings.Contains(sshdConfig(Config{}, env), "PermitRootLogin prohibit-password") {
		t.Error("a guest without users has no login at all")
	}
}

func TestAuthorizedKeys(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKVi4ZotV7JsdLGAfs4vtSYAN3krVSWFxIY5pW9hL+Sb"
	got := authorizedKeys([]string{key + " me", "garbage", "command=\"/bin/evil\" " + key}, []string{key, ""})
	if got != key+" me\n" {
		t.Errorf("got %q", got)
	}
}

func TestHostKey(t *testing.T) {
	private, public, err := newHostKey()
	if err != nil {
		t.Fatal(err)
	}
	again, err := publicHostKey(private)
	if err != nil || again != public || !strings.HasPrefix(public, "ssh-ed25519 ") {
		t.Errorf("%q, %q, %v", public, again, err)
	}
}

// TestSystemScopeReachesSSH: what the entrypoint sees every session sees, also
// what /etc/environment cannot hold.
func TestSystemScopeReachesSSH(t *testing.T) {
	env, err := newEnvironment([]EnvVar{
		{Key: "COLOR", Value: "#fff # not a comment"}, {Key: "Q", Value: `a "b" \c`}, {Key: "BREAK", Value: "x\ny"},
		{Scope: "user:bob", Key: "Q", Value: "bob's"}, {Scope: "user:eve", Key: "E", Value: "1"}, {Scope: "user:nl", Key: "N", Value: "\n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := env.environmentFile(); got != "Q=\"a \"b\" \\c\"\n" {
		t.Errorf("/etc/environment: %q", got)
	}
	got := sshdConfig(Config{Users: []User{{Name: "bob", DisableRoot: true, SSHPasswordAuth: true, PasswordHash: "$6$h"}}}, env)
	want := `PermitRootLogin no
SetEnv "COLOR=#fff # not a comment" "Q=a \"b\" \\c"
Match User bob
	PasswordAuthentication yes
	SetEnv "COLOR=#fff # not a comment" "Q=bob's"
Match User eve
	SetEnv "COLOR=#fff # not a comment" "E=1" "Q=a \"b\" \\c"
Match User nl
	SetEnv "COLOR=#fff # not a comment" "Q=a \"b\" \\c"
`
	if !strings.HasSuffix(got, want) {
		t.Errorf("got\n%s\nwant it to end in\n%s", got, want)
	}
	none, err := newEnvironment([]EnvVar{{Key: "BREAK", Value: "x\ny"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := sshdConfig(Config{}, none); strings.Contains(got, "SetEnv") {
		t.Errorf("a SetEnv without a variable, which sshd refuses:\n%s", got)
	}
}

func TestKeyFiles(t *testing.T) {
	const a, b = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKVi4ZotV7JsdLGAfs4vtSYAN3krVSWFxIY5pW9hL+Sb",
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
	for _, c := range []struct {
		name  string
		users []User
		want  map[string]string
	}{
		{"nobody", nil, map[string]string{"root": b + "\n"}},
		{"root with a key", []User{{Name: "root", SSHKeys: []string{a}}}, map[string]string{"root": a + "\n" + b + "\n"}},
		{"root, closed", []User{{Name: "root", SSHKeys: []string{a}, DisableRoot: true}}, map[string]string{"root": a + "\n" + b + "\n"}},
		{"a user", []User{{Name: "bob", SSHKeys: []string{a}, DisableRoot: true}}, map[string]string{"bob": a + "\n" + b + "\n"}},
		{"a user and root", []User{{Name: "bob", SSHKeys: []string{a}}}, map[string]string{"bob": a + "\n" + b + "\n", "root": b + "\n"}},
	} {
		if got := keyFiles(c.users, []string{b}); !maps.Equal(got, c.want) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
