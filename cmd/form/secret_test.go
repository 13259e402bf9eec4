package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/seal"
	"github.com/formthefog/formation/crdt/stmt"
)

// claimed has a node hold a slot of an instance, in its own words.
func (h *home) claimed(node ed25519.PrivateKey, id string, slot int, phase crdt.ClaimPhase) {
	h.t.Helper()
	r, err := crdt.Open(crdt.ReplicaConfig{Dir: h.t.TempDir(), Key: node, Network: testNet, Engine: crdt.NewModel()})
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	claims := []crdt.Claim{{Instance: id, Owner: stmt.KeyOf(h.owner), Slot: slot, Phase: phase, Ready: phase == crdt.ClaimRunning}}
	if err := r.SetClaims(context.Background(), claims); err != nil {
		h.t.Fatal(err)
	}
	for _, raw := range r.ClaimStatements(id) {
		if _, err := h.daemon.Submit(context.Background(), raw); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *home) secret(id, name string) crdt.Secret {
	h.t.Helper()
	all := h.daemon.View().Secrets(id)
	at := slices.IndexFunc(all, func(c crdt.Secret) bool { return c.Name == name })
	if at < 0 {
		h.t.Fatalf("no secret %s", name)
	}
	return all[at]
}

// readers are those of some keys that can open a secret with this value.
func readers(t *testing.T, c crdt.Secret, value string, keys ...byte) (out []byte) {
	t.Helper()
	for _, k := range keys {
		f, err := seal.Open(testKey(k), c.Box, c.Sum)
		switch {
		case err == nil && string(f.Value()) == value:
			out = append(out, k)
		case err == nil || !errors.Is(err, seal.ErrNotForUs):
			t.Fatalf("key %d: %q, %v", k, f.Value(), err)
		}
	}
	return out
}

const hunter = "hunter2-9f1c"

// set, ls, sync, rm: who can read a secret at each step, and that the value is in
// nothing that form, the state or the API says.
func TestSecrets(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 2})
	var said bytes.Buffer
	ok := func(want, stdin string, args ...string) string {
		t.Helper()
		code, out, talk := h.given(stdin, args...)
		said.WriteString(out + talk)
		if code != api.ExitOK || !strings.Contains(out, want) {
			t.Fatalf("form %s: exit %d, %q, %q; want %q", strings.Join(args, " "), code, out, talk, want)
		}
		return talk
	}
	if talk := ok("web: secret DB is set, for 0 nodes", hunter+"\n", "secret", "set", "web", "DB"); !strings.Contains(talk, "form secret sync web") {
		t.Errorf("nobody runs it, and form says %q", talk)
	}
	if got := readers(t, h.secret(id, "DB"), hunter, 1, 2, 3); string(got) != "\x01" {
		t.Errorf("readers %v, want the owner", got)
	}
	h.claimed(testKey(2), id, 0, crdt.ClaimRunning)
	h.claimed(testKey(4), id, 1, crdt.ClaimFailed)
	sum := h.secret(id, "DB").Sum
	ok("web: 1 of 1 secrets encrypted anew, to 1 node", "", "secret", "sync", "web")
	if got := readers(t, h.secret(id, "DB"), hunter, 1, 2, 3, 4); string(got) != "\x01\x02" || h.secret(id, "DB").Sum != sum {
		t.Errorf("readers %v, want the owner and the node that runs it", got)
	}
	ok("web: 0 of 1 secrets encrypted anew", "", "secret", "sync", "web")
	h.claimed(testKey(3), id, 1, crdt.ClaimLaunching)
	file := filepath.Join(h.dir, "key.pem")
	if err := os.WriteFile(file, []byte("line\n"+hunter+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ok("web: secret tls.key is set, for 2 nodes", "", "secret", "set", "web", "tls.key", "--from-file", file)
	if got := readers(t, h.secret(id, "tls.key"), "line\n"+hunter+"\n", 1, 2, 3, 4); string(got) != "\x01\x02\x03" {
		t.Errorf("readers of a file %v", got)
	}
	if got := readers(t, h.secret(id, "DB"), hunter, 1, 2, 3, 4); string(got) != "\x01\x02\x03" {
		t.Errorf("setting one secret left another to %v", got)
	}
	ok("DB", "other", "secret", "set", "web", "DB", "--env")
	ok("DB", hunter, "secret", "set", "web", "DB") // a new value stays a variable
	if !h.secret(id, "DB").Env {
		t.Error("a new value is no variable any more")
	}
	ok("DB       ", "", "secret", "ls", "web")
	_, out, _ := h.form("secret", "ls", "web", "--json")
	var list []api.Secret
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 || list[0].Name != "DB" || !list[0].Env || len(list[0].Nodes) != 2 || list[0].SetAt.IsZero() {
		t.Errorf("%v: %s", err, out)
	}
	said.WriteString(out)
	for _, args := range [][]string{{"manage", "inspect", "web", "--json"}, {"ls", "--json"}, {"manage", "explain", "web", "--json"}} {
		_, out, talk := h.form(args...)
		said.WriteString(out + talk)
	}
	raws := h.daemon.OwnerStatements(stmt.KeyOf(h.owner))
	for _, b := range append(raws, said.Bytes()) {
		if bytes.Contains(b, []byte(hunter)) || bytes.Contains(b, []byte("aHVudGVyMi")) {
			t.Errorf("the value is in %q", b)
		}
	}
	ok("web: secret DB is removed", "", "secret", "rm", "web", "DB")
	if got := h.daemon.View().Secrets(id); len(got) != 1 || got[0].Name != "tls.key" {
		t.Errorf("after rm: %+v", got)
	}
}

func TestSecretsRefused(t *testing.T) {
	h := newHome(t)
	h.ships(crdt.Spec{Name: "web", Replicas: 1})
	big := filepath.Join(h.dir, "big")
	if err := os.WriteFile(big, make([]byte, crdt.MaxSecretValue+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		stdin, args string
		code        int
		talk        string
	}{
		{"", "set web KEY", api.ExitUsage, "no value came on standard input"},
		{"\n", "set web KEY", api.ExitUsage, "no value came on standard input"},
		{"x", "set web KEY VALUE", api.ExitUsage, "the value comes on standard input"},
		{"x", "set web .KEY", api.ExitUsage, "cannot name a secret"},
		{"x", "set web tls.key --env", api.ExitUsage, "cannot be a variable"},
		{"a\x00b", "set web KEY --env", api.ExitUsage, "zero byte"},
		{strings.Repeat("x", crdt.MaxSecretValue+1), "set web KEY", api.ExitUsage, "more than 4096 bytes"},
		{"", "set web KEY --from-file " + big, api.ExitUsage, "more than 4096 bytes"},
		{"", "set web KEY --from-file " + big + ".none", api.ExitNotFound, "no such file"},
		{"x", "set web/0 KEY", api.ExitUsage, "names one replica"},
		{"x", "set nobody KEY", api.ExitNotFound, "no instance"},
		{"", "rm web KEY", api.ExitNotFound, "no such secret"},
		{"", "set", api.ExitUsage, "takes an INSTANCE and a KEY"},
	} {
		code, out, talk := h.given(tc.stdin, append([]string{"secret"}, strings.Fields(tc.args)...)...)
		if code != tc.code || out != "" || !strings.Contains(talk, tc.talk) || !strings.Contains(talk, "hint: ") {
			t.Errorf("secret %s: exit %d, %q, %q; want %d, %q", tc.args, code, out, talk, tc.code, tc.talk)
		}
	}
	// The largest value fits.
	if code, _, talk := h.given(strings.Repeat("x", crdt.MaxSecretValue)+"\n", "secret", "set", "web", "KEY"); code != api.ExitOK {
		t.Errorf("exit %d, %q", code, talk)
	}
}

// ship --wait and update --wait heal an instance that waits for its secrets.
func TestWaitingForSecretsIsHealed(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 1})
	if code, _, talk := h.given(hunter, "secret", "set", "web", "DB"); code != api.ExitOK {
		t.Fatal(talk)
	}
	h.claimed(testKey(2), id, 0, crdt.ClaimLaunching)
	h.daemon.status = func(v *crdt.View, s crdt.Spec) (string, string) {
		if len(v.Secrets(s.ID)[0].To) > 0 {
			return api.StatusFailure, "it is healed"
		}
		return api.StatusPending, "0 of 1 replicas ready: replica 0 is launching on X: " + crdt.AwaitsSecrets + ": run form secret sync web"
	}
	code, _, talk := h.form("manage", "update", "web", "--env", "A=1", "--wait")
	if code != api.ExitFailed || strings.Count(talk, "encrypted 1 secrets of web to 1 node") != 1 {
		t.Errorf("exit %d, %q", code, talk)
	}
	if got := readers(t, h.secret(id, "DB"), hunter, 1, 2); string(got) != "\x01\x02" {
		t.Errorf("readers %v", got)
	}
}

// A peer that makes up who may be a node gets no secret encrypted to its friends.
func TestSecretsForNodesOfTheNetworkAlone(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 1, Operators: []stmt.Key{stmt.KeyOf(testKey(2))}})
	h.claimed(testKey(2), id, 0, crdt.ClaimRunning)
	h.claimed(testKey(3), id, 0, crdt.ClaimRunning) // not on the operators list
	h.claimed(testKey(2), id, 1, crdt.ClaimRunning) // beyond the replicas
	if code, _, talk := h.given(hunter, "secret", "set", "web", "DB"); code != api.ExitOK {
		t.Fatal(talk)
	}
	if got := readers(t, h.secret(id, "DB"), hunter, 1, 2, 3); string(got) != "\x01\x02" {
		t.Errorf("readers %v", got)
	}
	h.daemon.root = stmt.KeyOf(testKey(7))
	if code, out, talk := h.given(hunter, "secret", "set", "web", "DB"); code != api.ExitNotAllowed || out != "" || !strings.Contains(talk, "names another root") {
		t.Errorf("exit %d, %q, %q", code, out, talk)
	}
}
