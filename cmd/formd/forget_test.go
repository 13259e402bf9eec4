package main

import (
	"context"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// A forgotten node is gone from the state, and no ticket brings its key back.
func TestForgetNode(t *testing.T) {
	root := &identity{Key: newKey(t), RootKey: newKey(t)}
	root.Name, root.Root = privateName, stmt.KeyOf(root.RootKey)
	joined := &identity{Key: newKey(t), membership: root.membership}
	open := &identity{Key: newKey(t), membership: membership{Name: "fog"}}
	operate := func(id *identity) *operator {
		r, err := crdt.Open(crdt.ReplicaConfig{Dir: t.TempDir(), Key: id.Key, Network: id.network(), Root: id.Root, RootKey: id.RootKey, Engine: crdt.NewModel()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return &operator{id: id, state: r, addrs: func() []string { return nil }, now: time.Now}
	}
	ctx, o, other, strange := context.Background(), operate(root), newKey(t), stmt.KeyOf(newKey(t))
	key := stmt.KeyOf(other)
	inv, err := o.Invite(ctx, api.InviteRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := stmt.ParseTicket(inv.Ticket)
	if err != nil {
		t.Fatal(err)
	}
	join, err := ticket.Join(key, stmt.RoleNode, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	register, err := crdt.NewRegisters(other, root.network(), 0).Node(crdt.NewState(root.network(), root.Root, crdt.NewModel()), crdt.Node{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.state.Submit(ctx, join, register[0].Statement().Raw); err != nil || len(o.state.View().Nodes()) != 1 {
		t.Fatal("the node is not there", err)
	}
	asJoined, asOpen := operate(joined), operate(open)
	if _, err := asJoined.state.Submit(ctx, join); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    *operator
		node stmt.Key
		exit int
	}{
		{"itself", o, root.self(), api.ExitUsage},
		{"a stranger", o, strange, api.ExitNotFound},
		{"without the root key", asJoined, key, api.ExitNotAllowed},
		{"in an open network", asOpen, key, api.ExitUsage},
		{"a member", o, key, api.ExitOK},
		{"once more", o, key, api.ExitOK},
	} {
		if err := tt.o.Forget(ctx, tt.node); api.ExitOf(err) != tt.exit {
			t.Errorf("%s: %v, want exit %d", tt.name, err, tt.exit)
		}
	}
	if _, _, err := o.state.Admit(ctx, join, stmt.Key{}); err == nil || len(o.state.View().Nodes()) != 0 || o.state.View().IsMember(key, stmt.RoleNode) {
		t.Errorf("it is back: %v", err)
	}
}
