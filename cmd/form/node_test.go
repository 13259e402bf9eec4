package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// A node is forgotten by its peer ID or the end of it; one that is alive only
// when that is asked for.
func TestNodeForget(t *testing.T) {
	h := newHome(t)
	if err := h.daemon.SetNode(context.Background(), crdt.Node{}); err != nil {
		t.Fatal(err)
	}
	here, other := stmt.KeyOf(testKey(9)), stmt.KeyOf(testKey(8))
	for _, tt := range []struct {
		args   string
		exit   int
		says   string
		forgot []stmt.Key
	}{
		{"forget " + other.String(), api.ExitOK, other.String() + "\n", []stmt.Key{other}},
		{"forget --json " + other.String(), api.ExitOK, `"node": "` + other.String() + `"`, []stmt.Key{other}},
		{"forget " + here.String(), api.ExitFailed, "is alive", nil},
		{"forget --force " + here.String()[40:], api.ExitOK, here.String(), []stmt.Key{here}},
		{"forget nonsense", api.ExitNotFound, `no node "nonsense"`, nil},
		{"forget", api.ExitUsage, "takes one NODE", nil},
	} {
		h.daemon.forgot = nil
		code, out, talk := h.form(append([]string{"node"}, strings.Fields(tt.args)...)...)
		if code != tt.exit || !strings.Contains(out+talk, tt.says) || !slices.Equal(h.daemon.forgot, tt.forgot) {
			t.Errorf("%s: exit %d, %q, %q, forgot %v", tt.args, code, out, talk, h.daemon.forgot)
		}
	}
}

// An owner says that it runs a node, and takes that back for ever; the root's word goes
// through the node that has its key. Who says alone what the node does not say is told.
func TestNodeOperator(t *testing.T) {
	h := newHome(t)
	if err := h.daemon.SetNode(context.Background(), crdt.Node{}); err != nil {
		t.Fatal(err)
	}
	here, other, me := stmt.KeyOf(testKey(9)), stmt.KeyOf(testKey(7)), stmt.KeyOf(h.owner)
	listed := func() bool {
		return slices.Contains(h.daemon.View().Devices(me), crdt.Device{Key: here, Node: true})
	}
	for _, tt := range []struct {
		args   string
		exit   int
		says   string
		listed bool
	}{
		{here.String(), api.ExitOK, here.String() + ": operator " + me.String() + ", by the owner's word\n", true},
		{here.String(), api.ExitOK, "hint: there: formd run --operator " + me.String(), true},
		{"--remove " + other.String(), api.ExitNotFound, "you do not say that you run", true},
		{here.String() + " " + other.String(), api.ExitOK, "operator " + other.String() + ", by the root's word", true},
		{here.String() + " none", api.ExitOK, "operator none, by the root's word", true},
		{here.String() + " olga", api.ExitUsage, "an owner's peer ID", true},
		{"--remove " + here.String() + " none", api.ExitUsage, "takes back your own word", true},
		{"nonsense", api.ExitNotFound, `no node "nonsense"`, true},
		{"--remove " + here.String(), api.ExitOK, "operator none, by the owner's word", false},
		{here.String(), api.ExitUsage, "was removed, which is for ever", false},
	} {
		code, out, talk := h.form(append([]string{"node", "operator"}, strings.Fields(tt.args)...)...)
		if code != tt.exit || !strings.Contains(out+talk, tt.says) || listed() != tt.listed {
			t.Errorf("%s: exit %d, %q, %q, listed %v", tt.args, code, out, talk, listed())
		}
	}
	if want := [][2]stmt.Key{{here, other}, {here, {}}}; !slices.Equal(h.daemon.named, want) {
		t.Errorf("the root was asked for %v", h.daemon.named)
	}
	if code, out, _ := h.form("key", "device", "ls", "--json"); code != api.ExitOK || out != "[]\n" {
		t.Errorf("a node among the devices: exit %d, %s", code, out)
	}
}

// Where the root key is not, the key that a node has named for its operator takes
// it out, and no other key does.
func TestNodeForgetByItsOperator(t *testing.T) {
	h := newHome(t)
	node := testKey(8)
	register := func(operators ...stmt.Key) {
		t.Helper()
		raw, err := stmt.SignOperators(node, testNet, operators)
		if err != nil {
			t.Fatal(err)
		}
		s := crdt.NewState(testNet, stmt.Key{}, crdt.NewModel())
		out, err := crdt.NewRegisters(node, testNet, uint64(len(operators))).Node(s, crdt.Node{Operators: raw})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.daemon.Submit(context.Background(), out[0].Statement().Raw); err != nil {
			t.Fatal(err)
		}
	}
	h.daemon.onForget = func(stmt.Key) error {
		return api.Problemf(api.ExitNotAllowed, "this node does not hold the network's root key")
	}
	key, me := stmt.KeyOf(node), stmt.KeyOf(h.owner)
	forget := func(want int, says string) {
		t.Helper()
		if code, out, talk := h.form("node", "forget", "--force", key.String()); code != want || !strings.Contains(out+talk, says) {
			t.Errorf("exit %d, %q, %q", code, out, talk)
		}
	}
	register(stmt.KeyOf(testKey(7)))
	forget(api.ExitNotAllowed, "your key is none of the operators")
	register(stmt.KeyOf(testKey(7)), me)
	if _, out, _ := h.form("node", "status", key.String()); !strings.Contains(out, me.String()) {
		t.Errorf("node status does not name the operator:\n%s", out)
	}
	var got []byte
	h.daemon.onSubmit = func(raws ...[]byte) ([]stmt.ID, error) {
		got = raws[0]
		return []stmt.ID{{}}, nil
	}
	forget(api.ExitOK, key.String())
	m, err := stmt.CheckMember(got, testNet, stmt.Key{})
	if err != nil || !m.ByOperator || m.Key != key || m.Role != stmt.RoleNode || m.Statement.Author != me {
		t.Errorf("submitted %+v, %v", m, err)
	}
}
