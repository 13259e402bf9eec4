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
