package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/seal"
	"github.com/formthefog/formation/crdt/stmt"
)

// What may be told of secrets is for their owner's session alone, and no answer
// holds a value.
func TestSecretsRoute(t *testing.T) {
	frame, err := seal.New([]byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	box, to, err := seal.Box(frame, stmt.KeyOf(key(1)), []stmt.Key{stmt.KeyOf(key(12))})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		caller Caller
		exit   int
	}{
		"the owner":                     {Caller{Peer: "p", Owner: stmt.KeyOf(key(1))}, ExitOK},
		"another owner":                 {Caller{Peer: "p", Owner: stmt.KeyOf(key(2))}, ExitNotAllowed},
		"a member":                      {Caller{Peer: "p"}, ExitNotAllowed},
		"the unix socket":               {Caller{Local: true}, ExitNotAllowed},
		"anybody, over the web address": {Caller{}, ExitNotAllowed},
	} {
		f, c, _ := serve(t, tc.caller)
		a, id := f.create(key(1))
		raws, err := a.SetSecret(id, crdt.Secret{Name: "DB", Env: true, Box: box, Sum: frame.Sum(), To: to})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Replica.Submit(context.Background(), raws...); err != nil {
			t.Fatal(err)
		}
		f.claim(key(12), crdt.Claim{Instance: id, Generation: 1, Phase: crdt.ClaimRunning})
		list, err := c.Secrets(context.Background(), id)
		var p *Problem
		switch {
		case tc.exit != ExitOK && (!errors.As(err, &p) || p.Exit != tc.exit):
			t.Errorf("%s: %v, %v; want exit %d", name, list, err, tc.exit)
		case tc.exit == ExitOK && (err != nil || len(list) != 1 || list[0].Name != "DB" || !list[0].Env || len(list[0].Nodes) != 1 || list[0].Nodes[0] != to[0]):
			t.Errorf("%s: %+v, %v", name, list, err)
		}
		// Who runs it is public, and proven.
		proof, err := c.ClaimStatements(context.Background(), id)
		if err != nil || len(proof) != 1 {
			t.Errorf("%s: %d statements of claims, %v", name, len(proof), err)
		}
		for _, path := range []string{"/v1/instances", "/v1/instances/" + id, "/v1/instances/" + id + "/explain", "/v1/owners/" + stmt.KeyOf(key(1)).String() + "/statements"} {
			got, err := get[any](context.Background(), c, path)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(fmt.Sprint(got), "hunter2") {
				t.Errorf("%s tells the value", path)
			}
		}
	}
	f, c, _ := serve(t, Caller{Peer: "p", Owner: stmt.KeyOf(key(1))})
	_, id := f.create(key(1))
	if list, err := c.Secrets(context.Background(), id); err != nil || list == nil || len(list) != 0 {
		t.Errorf("none: %v, %v", list, err)
	}
	if _, err := c.Secrets(context.Background(), crdt.DocID{9}.String()); ExitOf(err) != ExitNotFound {
		t.Errorf("of no instance: %v", err)
	}
}
