package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// A first ship hands its secrets in with the instance, and stays until the node
// that took the replica can read them, and nobody else can. A second one changes
// what is new; the values are in nothing that form says.
func TestShipWithSecrets(t *testing.T) {
	h := newHome(t)
	h.daemon.listen(t)
	pack := putPack(t, kit.DefaultDir("", os.Getenv).Store(), h.owner).String()
	file := filepath.Join(h.dir, "tls.key")
	if err := os.WriteFile(file, []byte("line\n"+hunter+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A node takes the replica as soon as the instance is there. Before that the
	// secrets are there too.
	var taken atomic.Bool
	var first []crdt.Secret
	h.daemon.status = func(v *crdt.View, s crdt.Spec) (string, string) {
		if !taken.Swap(true) {
			first = v.Secrets(s.ID)
			h.claimed(testKey(2), s.ID, 0, crdt.ClaimLaunching)
			return api.StatusPending, ""
		}
		if all := v.Secrets(s.ID); len(all) > 0 && len(all[0].To) == 0 {
			return api.StatusPending, crdt.AwaitsSecrets
		}
		return api.StatusSuccess, ""
	}
	ship := func(args ...string) (id, said string) {
		t.Helper()
		code, out, talk := h.given(hunter+"\n", append([]string{"ship", pack, "--replicas", "1", "--hold", "1m"}, args...)...)
		if code != api.ExitOK || strings.Contains(out+talk, hunter) || strings.Contains(talk, "warning: no node has been given") {
			t.Fatalf("exit %d, %q, %q", code, out, talk)
		}
		lines := strings.Fields(out)
		return lines[len(lines)-1], talk
	}
	id, _ := ship("--secret", "tls.key="+file, "--secret-env", "DB")
	if len(first) != 2 || first[0].Name != "DB" || !first[0].Env || first[1].Name != "tls.key" || first[1].Env {
		t.Fatalf("when the instance was first seen it had the secrets %+v", first)
	}
	for name, value := range map[string]string{"DB": hunter, "tls.key": "line\n" + hunter + "\n"} {
		if got := readers(t, h.secret(id, name), value, 1, 2, 3); string(got) != "\x01\x02" {
			t.Errorf("readers of %s: %v, want the owner and the node that runs it", name, got)
		}
	}

	sum := h.secret(id, "tls.key").Sum
	again, said := ship("--secret", "tls.key="+file, "--secret-env", "DB")
	if again != id || !strings.Contains(said, "runs exactly this already") || h.secret(id, "tls.key").Sum != sum {
		t.Errorf("the same once more: %s, %q", again, said)
	}
	if err := os.WriteFile(file, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	ship("--secret", "tls.key="+file)
	if got := readers(t, h.secret(id, "tls.key"), "other", 1, 2, 3); string(got) != "\x01\x02" {
		t.Errorf("readers of the new value %v", got)
	}
	if got := readers(t, h.secret(id, "DB"), hunter, 1, 2, 3); string(got) != "\x01\x02" || !h.secret(id, "DB").Env {
		t.Errorf("readers of what was not named %v", got)
	}
}

// Who leaves before a node has taken a replica is told what to do.
func TestShipWithSecretsNobodyTakes(t *testing.T) {
	h := newHome(t)
	h.daemon.listen(t)
	pack := putPack(t, kit.DefaultDir("", os.Getenv).Store(), h.owner).String()
	h.daemon.wanted = 1
	if err := h.daemon.SetNode(t.Context(), crdt.Node{Addrs: h.daemon.addrs, Holds: []string{pack}}); err != nil {
		t.Fatal(err)
	}
	code, out, talk := h.given(hunter, "ship", pack, "--secret", "DB", "--hold", "50ms")
	if code != api.ExitOK || !strings.Contains(talk, "no node has been given its secrets") {
		t.Fatalf("exit %d, %q, %q", code, out, talk)
	}
	if strings.Contains(talk, "nothing here is needed any more") {
		t.Errorf("and says %q", talk)
	}
	mine := h.daemon.View().InstancesOf(stmt.KeyOf(h.owner))
	if len(mine) != 1 || !strings.Contains(talk, "form secret sync "+mine[0].ID) {
		t.Errorf("%d instances; %q", len(mine), talk)
	}
	if got := readers(t, h.secret(mine[0].ID, "DB"), hunter, 1, 2); string(got) != "\x01" {
		t.Errorf("readers %v, want the owner", got)
	}
}

// What cannot be is refused before anything is built or handed in.
func TestShipRefusesSecrets(t *testing.T) {
	h := newHome(t)
	big := filepath.Join(h.dir, "big")
	if err := os.WriteFile(big, make([]byte, crdt.MaxSecretValue+1), 0o600); err != nil {
		t.Fatal(err)
	}
	var many []string
	for i := range crdt.MaxSecrets + 1 {
		many = append(many, fmt.Sprintf("--secret K%d=%s", i, big))
	}
	for _, tc := range []struct {
		stdin, args string
		code        int
		talk        string
	}{
		{"", "--secret KEY", api.ExitUsage, "| form ship --secret KEY, or --secret KEY=FILE"},
		{"x", "--secret a/b", api.ExitUsage, "cannot name a secret"},
		{"x", "--secret =" + big, api.ExitUsage, "cannot name a secret"},
		{"x", "--secret-env tls.key", api.ExitUsage, "cannot be a variable's name"},
		{"x\x00y", "--secret-env KEY", api.ExitUsage, "zero byte"},
		{"x", "--secret A --secret B", api.ExitUsage, "--secret B=FILE"},
		{"x", "--secret A --secret-env A=" + big, api.ExitUsage, "given twice"},
		{"x", "--secret A=", api.ExitUsage, "names no file"},
		{"x", "--secret A=" + big, api.ExitUsage, "more than"},
		{"x", "--secret A=" + big + ".not", api.ExitNotFound, "big.not"},
		{"", strings.Join(many, " "), api.ExitUsage, "at most"},
	} {
		code, out, talk := h.given(tc.stdin, append([]string{"ship", h.dir}, strings.Fields(tc.args)...)...)
		if code != tc.code || out != "" || !strings.Contains(talk, tc.talk) {
			t.Errorf("ship %.80s: exit %d, %q, %.300q", tc.args, code, out, talk)
		}
	}
	if n := len(h.daemon.View().Instances()); n != 0 {
		t.Errorf("%d instances", n)
	}
}
