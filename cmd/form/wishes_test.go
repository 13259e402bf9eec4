package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/store"
)

// Every flag of ship is judged before a folder is looked at, let alone built.
func TestShipFlagsAreJudgedFirst(t *testing.T) {
	h := newHome(t)
	var many []string
	for i := range 70 {
		many = append(many, "--env", fmt.Sprintf("K%d=1", i))
	}
	for _, flags := range [][]string{
		{"--name", "Not A Label"}, {"--name", strings.Repeat("x", 64)}, {"--name", "-x"},
		{"--env", "1X=1"}, {"--env", "A B=1"}, {"--env", "novalue"}, {"--env", "-"}, {"--env", "=1"}, {"--env", "A=a\x00b"},
		{"--env", "A=" + strings.Repeat("x", 5000)}, many,
		{"--env", "A=" + strings.Repeat("x", 3000), "--env", "B=" + strings.Repeat("x", 3000), "--env", "C=" + strings.Repeat("x", 3000)},
		{"--label", "Zone=a"}, {"--label", "zone"}, {"--label", "zone=" + strings.Repeat("x", 64)}, {"--label", "formd.x=1"},
		{"--region", strings.Repeat("x", 64)}, {"--replicas", "0"}, {"--replicas", "65"}, {"--hold", "-1s"}, {"--wait=soon"},
		{"--ssh-key", "nonsense"},
	} {
		args := append([]string{"ship", "/nonexistent/folder"}, flags...)
		if code, out, talk := h.form(args...); code != api.ExitUsage || out != "" || !strings.Contains(talk, "\nhint: ") {
			t.Errorf("%.60q: exit %d, %q, %.300q", flags, code, out, talk)
		}
	}
	if code, _, talk := h.form("ship", "/nonexistent/folder", "--env", "A=1", "--env", "B-", "--label", "zone-", "--name", "web"); code != api.ExitNotFound {
		t.Errorf("good flags: exit %d, %q", code, talk)
	}
}

// What a ship has given, a ship can take back.
func TestWishesCanBeTakenBack(t *testing.T) {
	read := func(flag string, list ...string) edits {
		t.Helper()
		e, err := readEdits(flag, list, func(string, string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	id, root := cid.MustParse(somePack), &store.Root{Run: store.RunConfig{VCPU: 1, Replicas: 3}}
	var s crdt.Spec
	first := wishes{env: read("--env", "A=1", "B=2"), labels: read("--label", "zone=a"), sshKeys: []string{"own", "mate"}, replicas: 5}
	first.apply(&s, id, root, false)
	if s.Replicas != 5 || len(s.Env) != 2 || s.Labels["zone"] != "a" || !slices.Equal(s.SSHKeys, []string{"own", "mate"}) {
		t.Fatalf("created %+v", s)
	}
	env := s.Env
	second := wishes{env: read("--env", "A-", "C=-", "D=a=b-"), labels: read("--label", "zone-", "none-"), sshKeys: []string{"own"}}
	second.apply(&s, id, root, true)
	if want := map[string]string{"B": "2", "C": "-", "D": "a=b-"}; !maps.Equal(s.Env, want) || len(s.Labels) != 0 {
		t.Errorf("env %v, want %v; labels %v", s.Env, want, s.Labels)
	}
	if !slices.Equal(s.SSHKeys, []string{"own"}) {
		t.Errorf("still lets in %q", s.SSHKeys)
	}
	if env["A"] != "1" {
		t.Error("the map of the old spec was changed")
	}
}
