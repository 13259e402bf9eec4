package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// The owner lists a device and makes it a delegate of one instance; with its own
// key the device changes that one, and nothing else.
func TestDevices(t *testing.T) {
	h := newHome(t)
	web, other := h.ships(crdt.Spec{Name: "web", Replicas: 1}), h.ships(crdt.Spec{Name: "other", Replicas: 1})
	owner, ci := stmt.KeyOf(h.owner), stmt.KeyOf(testKey(7))
	file := filepath.Join(h.dir, "ci.key")
	if err := keystore.Save(file, testKey(7), nil); err != nil {
		t.Fatal(err)
	}
	run := func(args string, exit int, says ...string) {
		t.Helper()
		code, out, talk := h.form(strings.Fields(args)...)
		for _, s := range append(says, "") {
			if code != exit || !strings.Contains(out+talk, s) {
				t.Fatalf("form %s: exit %d, %q, %q; want %d and %q", args, code, out, talk, exit, s)
			}
		}
	}
	run("key device ls --json", api.ExitOK, "[]")
	run("key device add "+ci.String()+" --name ci", api.ExitOK, ci.String()+": listed")
	run("key device add "+ci.String()+" --name My_CI", api.ExitUsage, "no DNS label")
	run("key device add nonsense", api.ExitUsage, "hint: ")
	run("key device ls", api.ExitOK, ci.String(), "ci")
	run("manage delegate web "+ci.String(), api.ExitOK, "web: delegated")
	run("manage inspect web --json", api.ExitOK, `"delegates": [`, ci.String())
	if v := h.daemon.View(); !v.SpeaksFor(ci, owner) {
		t.Fatal("the device does not speak for its owner")
	}

	mine := h.owner
	t.Setenv("FORM_KEY_FILE", file)
	t.Setenv("FORM_OWNER", owner.String())
	run("key show", api.ExitOK, ci.String())
	run("ls", api.ExitOK, "web", "other")
	run("manage scale web 3", api.ExitOK, "web")
	if n := h.spec(web).Replicas; n != 3 {
		t.Fatalf("%d replicas", n)
	}
	run("manage scale other 3", api.ExitNotAllowed, "no delegate", "hint: the owner makes it one: form manage delegate other KEY")
	run("manage delete --yes web", api.ExitNotAllowed, "needs the owner's key")
	run("manage delegate web "+ci.String(), api.ExitOK) // as it is already
	run("manage delegate --remove web "+ci.String(), api.ExitNotAllowed, "needs the owner's key")
	run("key device rm "+ci.String(), api.ExitNotAllowed, "needs the owner's key")
	if n := h.spec(other).Replicas; n != 1 {
		t.Fatalf("%d replicas of the other", n)
	}
	t.Setenv("FORM_OWNER", "nonsense")
	run("ls --mine", api.ExitUsage)

	t.Setenv("FORM_OWNER", "")
	if err := keystore.Save(file+"2", mine, nil); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FORM_KEY_FILE", file+"2")
	run("manage delegate --remove web "+ci.String(), api.ExitOK, "web: delegate removed")
	run("key device rm "+ci.String(), api.ExitOK, "removed")
	run("key device rm "+ci.String(), api.ExitNotFound, "form key device ls")
	run("key device add "+ci.String(), api.ExitUsage, "for ever")
	if h.daemon.View().SpeaksFor(ci, owner) || len(h.spec(web).Delegates) != 0 {
		t.Fatal("the device still speaks for its owner")
	}
}
