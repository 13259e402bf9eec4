package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Without a pack, update does what its flags say and keeps the disks; without
// flags too it begins anew.
func TestUpdateWithoutAPack(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 2, Env: map[string]string{"A": "1"}})
	for _, tc := range []struct {
		flags    string
		recreate uint64
		done     string
		check    func(crdt.Spec) bool
	}{
		{"--replicas 3", 0, "updating", func(s crdt.Spec) bool { return s.Replicas == 3 && s.Env["A"] == "1" }},
		{"--env B=2 --label zone=a --region eu", 0, "updating", func(s crdt.Spec) bool {
			return s.Replicas == 3 && s.Env["A"] == "1" && s.Env["B"] == "2" && s.Labels["zone"] == "a" && s.Region == "eu"
		}},
		{"--region=", 0, "updating", func(s crdt.Spec) bool { return s.Region == "" && s.Labels["zone"] == "a" }},
		{"", 1, "recreating", func(s crdt.Spec) bool { return s.Replicas == 3 && s.Env["B"] == "2" }},
	} {
		code, out, talk := h.form(append([]string{"manage", "update", "web"}, strings.Fields(tc.flags)...)...)
		if s := h.spec(id); code != api.ExitOK || out != "web: "+tc.done+"\n" || s.Recreate != tc.recreate || !tc.check(s) {
			t.Errorf("%q: exit %d, %q, %q; %+v", tc.flags, code, out, talk, s)
		}
	}
	before := h.spec(id)
	for _, flags := range []string{"--no-cache", "--file F", "--hold 1m", "--replicas 0", "--wait=soon"} {
		if code, _, talk := h.form(append([]string{"manage", "update", "web"}, strings.Fields(flags)...)...); code != api.ExitUsage {
			t.Errorf("%s: exit %d, %q", flags, code, talk)
		}
	}
	if s := h.spec(id); s.Generation != before.Generation {
		t.Errorf("a refused update has changed %+v to %+v", before, s)
	}
}

// update --wait stays until the change has been rolled out, and a failure ends it.
func TestUpdateWaits(t *testing.T) {
	h := newHome(t)
	h.ships(crdt.Spec{Name: "web", Replicas: 2})
	h.daemon.word, h.daemon.reason = api.StatusFailure, "no node"
	if code, out, talk := h.form("manage", "update", "web", "--replicas", "3", "--wait"); code != api.ExitFailed ||
		out != "web: updating\n" || !strings.Contains(talk, "FAILURE { reason: no node }") {
		t.Errorf("exit %d, %q, %q", code, out, talk)
	}
	h.daemon.word, h.daemon.reason = api.StatusPending, ""
	if code, _, talk := h.form("manage", "update", "web", "--replicas", "2", "--wait", "--timeout", "100ms"); code != api.ExitTimeout ||
		!strings.Contains(talk, "timed out: web: PENDING") {
		t.Errorf("exit %d, %q", code, talk)
	}
}

func TestAuthorised(t *testing.T) {
	if got := (wishes{sshKeys: []string{"c", "b", "c", "own"}}).authorised("own"); !slices.Equal(got, []string{"own", "c", "b"}) {
		t.Errorf("%q", got)
	}
}

// A verb on the whole instance takes no replica and no user for an answer.
func TestWholeInstance(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 2})
	before := h.spec(id)
	for _, verb := range []string{
		"manage stop", "manage start", "manage restart", "manage update", "manage inspect", "manage explain", "manage history",
		"manage get status", "manage events", "status", "rm",
	} {
		for _, arg := range []string{"web/0", "bigdog@web"} {
			args := append(strings.Fields(verb), arg)
			if code, out, talk := h.form(args...); code != api.ExitUsage || out != "" || !strings.Contains(talk, "whole instance") {
				t.Errorf("%s: exit %d, %q, %q", args, code, out, talk)
			}
		}
	}
	if code, _, talk := h.form("scale", "web/0", "1"); code != api.ExitUsage {
		t.Errorf("scale: exit %d, %q", code, talk)
	}
	if s := h.spec(id); s.Generation != before.Generation {
		t.Errorf("changed to %+v", s)
	}
	if code, out, talk := h.form("manage", "stop", "web"); code != api.ExitOK || out != "web: stopping\n" || h.spec(id).Phase != crdt.PhaseStopped {
		t.Errorf("stop: exit %d, %q, %q", code, out, talk)
	}
}

// Instances named twice end once, and the answer is one list.
func TestDelete(t *testing.T) {
	h := newHome(t)
	ids := []string{h.ships(crdt.Spec{Name: "a", Replicas: 1}), h.ships(crdt.Spec{Name: "b", Replicas: 1})}
	code, out, talk := h.form("rm", "a", "b", "a", ids[1], "--json")
	var got []change
	if err := json.Unmarshal([]byte(out), &got); code != api.ExitOK || err != nil || !slices.Equal(got, []change{{ids[0], "a", "deleted"}, {ids[1], "b", "deleted"}}) {
		t.Errorf("exit %d, %q, %q: %v", code, out, talk, err)
	}
	if left := h.daemon.View().InstancesOf(stmt.KeyOf(h.owner)); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// The shape of a JSON answer follows from what was asked, not from what is there.
func TestJSONShapes(t *testing.T) {
	h := newHome(t)
	h.ships(crdt.Spec{Name: "web", Replicas: 2})
	if err := h.daemon.SetNode(context.Background(), crdt.Node{}); err != nil {
		t.Fatal(err)
	}
	self := stmt.KeyOf(testKey(9)).String()
	for _, tc := range []struct{ args, begins, holds string }{
		{"manage get status " + somePack, "[", `"name": "web"`},
		{"manage get status web", "{", `"name": "web"`},
		{"node status", "{", `"node": {`},
		{"node status " + self, "{", `"node": {`},
	} {
		code, out, talk := h.form(append(strings.Fields(tc.args), "--json")...)
		if code != api.ExitOK || !strings.HasPrefix(out, tc.begins) || !strings.Contains(out, tc.holds) {
			t.Errorf("%s: exit %d, %q, %q", tc.args, code, out, talk)
		}
	}
	if code, out, _ := h.form("manage", "get", "status", somePack); code != api.ExitOK || out != "PENDING\n" {
		t.Errorf("one instance of a pack: exit %d, %q", code, out)
	}
}

// A change that a node sets aside is not told of as done.
func TestChangeIsSetAside(t *testing.T) {
	h := newHome(t)
	h.ships(crdt.Spec{Name: "web", Replicas: 2})
	h.daemon.onSubmit = func(...[]byte) ([]stmt.ID, error) {
		return nil, api.Problemf(api.ExitFailed, "set aside").WithHint("look in a minute")
	}
	for _, verb := range []string{"manage restart web", "scale web 3", "rm web", "manage update web --replicas 4"} {
		code, out, talk := h.form(strings.Fields(verb)...)
		if code != api.ExitFailed || out != "" || !strings.HasSuffix(talk, "error: set aside\nhint: look in a minute\n") {
			t.Errorf("%s: exit %d, %q, %q", verb, code, out, talk)
		}
	}
}
