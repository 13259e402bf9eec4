package main

import (
	"context"
	"crypto/ed25519"
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

// Whom a node's ticket or its --operator names may take the node out, from any
// other node; who is not named may not.
func TestOperatorForgetsItsNode(t *testing.T) {
	root := &identity{Key: newKey(t), RootKey: newKey(t)}
	root.Name, root.Root = privateName, stmt.KeyOf(root.RootKey)
	state := func(id *identity) *crdt.Replica {
		r, err := crdt.Open(crdt.ReplicaConfig{Dir: t.TempDir(), Key: id.Key, Network: id.network(), Root: id.Root, RootKey: id.RootKey, Engine: crdt.NewModel()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	ctx, mine, others := context.Background(), newKey(t), newKey(t)
	at := &operator{id: root, state: state(root), addrs: func() []string { return nil }, now: time.Now}
	for name, ask := range map[string]api.InviteRequest{
		"no nodes": {Roles: []string{"owner"}, Operators: []stmt.Key{stmt.KeyOf(mine)}},
		"too many": {Operators: make([]stmt.Key, stmt.MaxOperators+1)},
	} {
		if _, err := at.Invite(ctx, ask); api.ExitOf(err) != api.ExitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	inv, err := at.Invite(ctx, api.InviteRequest{Operators: []stmt.Key{stmt.KeyOf(mine)}})
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := stmt.ParseTicket(inv.Ticket)
	if err != nil {
		t.Fatal(err)
	}
	node := &identity{Key: newKey(t)}
	if err := node.join(ticket, time.Now()); err != nil {
		t.Fatal(err)
	}
	named, err := node.named([]string{node.Operators[0].String()})
	if err != nil {
		t.Fatal(err)
	}
	register, err := crdt.NewRegisters(node.Key, root.network(), 0).Node(crdt.NewState(root.network(), root.Root, crdt.NewModel()), crdt.Node{Operators: named})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := at.state.Submit(ctx, node.Admission, register[0].Statement().Raw); err != nil {
		t.Fatal(err)
	}
	n, there := at.state.View().Node(node.self())
	if !there {
		t.Fatal("the node is not there")
	}
	sub := &submitter{Replica: at.state, id: root, now: time.Now}
	for _, tt := range []struct {
		name string
		by   ed25519.PrivateKey
		via  []byte
		gone bool
	}{
		{"another key", others, n.Operators, false},
		{"another's word", others, mustName(t, root, others), false},
		{"its operator", mine, n.Operators, true},
	} {
		raw, err := stmt.SignMember(tt.by, root.network(), stmt.MemberBody{Key: node.self(), Role: stmt.RoleNode, Revoked: true}, tt.via, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = sub.Submit(ctx, raw)
		if _, there := at.state.View().Node(node.self()); there == tt.gone || (err == nil) != tt.gone {
			t.Errorf("%s: %v, the node is there: %v", tt.name, err, there)
		}
	}
	if _, _, err := at.state.Admit(ctx, node.Admission, stmt.Key{}); err == nil {
		t.Error("its ticket brings it back")
	}
}

// mustName is a node's word that key is its operator.
func mustName(t *testing.T, id *identity, key ed25519.PrivateKey) []byte {
	t.Helper()
	raw, err := id.named([]string{stmt.KeyOf(key).String()})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
