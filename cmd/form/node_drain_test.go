package main

import (
	"context"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// node drain says what is left, and waits for it when it is told to; what its
// owner has stopped, or what failed, is not waited for.
func TestDrain(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 3})
	claim := func(slot int, phase crdt.ClaimPhase, reason string) crdt.Claim {
		return crdt.Claim{Instance: id, Owner: stmt.KeyOf(h.owner), Slot: slot, Phase: phase, Reason: reason, Generation: 1}
	}
	set := func(claims ...crdt.Claim) {
		t.Helper()
		if err := h.daemon.SetClaims(context.Background(), claims); err != nil {
			t.Fatal(err)
		}
	}
	run := func(wantCode int, wantOut, wantErr string, args ...string) {
		t.Helper()
		code, out, talk := h.form(append([]string{"node"}, args...)...)
		if code != wantCode || strings.TrimSpace(out) != wantOut || !strings.Contains(talk, wantErr) {
			t.Errorf("form node %v: %d %q %q, want %d %q …%q…", args, code, out, talk, wantCode, wantOut, wantErr)
		}
	}
	set(claim(0, crdt.ClaimRunning, "no room elsewhere"), claim(1, crdt.ClaimStopped, ""), claim(2, crdt.ClaimFailed, ""))
	run(api.ExitOK, "draining", "", "drain")
	run(api.ExitTimeout, "", "web/0 is running: no room elsewhere", "drain", "--wait", "--timeout", "300ms")
	code, out, _ := h.form("node", "drain", "--json")
	if want := `"left": 1`; code != 0 || !strings.Contains(out, want) || !strings.Contains(out, `"draining": true`) {
		t.Errorf("--json: %d %s", code, out)
	}
	h.daemon.onDrain = func(ctx context.Context, on bool) error {
		if !on {
			return nil
		}
		return h.daemon.SetClaims(ctx, []crdt.Claim{claim(1, crdt.ClaimStopped, "")})
	}
	run(api.ExitOK, "drained", "", "drain", "--wait")
	run(api.ExitOK, "not draining", "", "undrain")
	run(api.ExitUsage, "", "unknown flag", "undrain", "--wait")
}
