package main

import (
	"os"
	"slices"
	"testing"

	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/crdt/stmt"
)

// The kit's hosts and the ticket's peers come last, also after a socket that the
// kit names; what a flag or the environment names is meant alone.
func TestRoute(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("XDG_STATE_HOME", dir)
	if os.Geteuid() == 0 {
		if _, err := os.Stat("/run/formd/api.sock"); err == nil {
			t.Skip("a formd of this machine has the default socket")
		}
	}
	k := kit.Config{Hosts: []string{"/host"}}
	named := kit.Config{Hosts: k.Hosts, API: "unix:///kit.sock"}
	ticket := &stmt.Ticket{Bootstrap: []string{"/boot"}}
	for name, tc := range map[string]struct {
		flags  globalFlags
		env    map[string]string
		kit    kit.Config
		socket string
		peers  []string
	}{
		"--peer":           {globalFlags{peers: []string{"/p"}, api: "/a"}, nil, named, "", []string{"/p"}},
		"--api":            {globalFlags{api: "unix:///a"}, map[string]string{"FORM_API": "/b", "FORM_PEER": "/p"}, named, "/a", nil},
		"FORM_API":         {globalFlags{}, map[string]string{"FORM_API": "/b", "FORM_PEER": "/p"}, named, "/b", nil},
		"FORM_PEER":        {globalFlags{}, map[string]string{"FORM_PEER": "/p /q"}, named, "", []string{"/p", "/q"}},
		"the kit's socket": {globalFlags{}, nil, named, "/kit.sock", []string{"/host", "/boot"}},
		"the kit's hosts":  {globalFlags{}, nil, k, "", []string{"/host", "/boot"}},
	} {
		a := &app{flags: tc.flags, getenv: func(v string) string { return tc.env[v] }}
		socket, peers, err := a.route(tc.kit, ticket)
		if err != nil || socket != tc.socket || !slices.Equal(peers, tc.peers) {
			t.Errorf("%s: %q, %q, %v; want %q, %q", name, socket, peers, err, tc.socket, tc.peers)
		}
	}
	for _, s := range []string{"unix://", "tcp:1", "nonsense"} {
		a := &app{flags: globalFlags{api: s}, getenv: func(string) string { return "" }}
		if socket, _, err := a.route(kit.Config{}, nil); err == nil {
			t.Errorf("--api %s: %q", s, socket)
		}
	}
}
