package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// The URLs of an instance are told by get, inspect and JSON; one without is told
// what it lacks.
func TestPublicURLs(t *testing.T) {
	h := newHome(t)
	public := h.ships(crdt.Spec{Name: "web", Replicas: 1, Expose: []string{"80/tcp public", "53/udp public"}})
	h.ships(crdt.Spec{Name: "lone", Replicas: 1, Expose: []string{"80/tcp public"}})
	h.ships(crdt.Spec{Name: "shut", Replicas: 1, Expose: []string{"80/tcp"}})
	one, two := stmt.KeyOf(testKey(3)), stmt.KeyOf(testKey(4))
	urls := []api.PublicURL{
		{URL: "https://web.me.example.org", Nodes: []stmt.Key{one, two}, Addresses: []string{"192.0.2.1"}},
		{URL: "udp://web.me.example.org:53", Nodes: []stmt.Key{one}, Addresses: []string{"192.0.2.1"}},
	}
	h.daemon.public = map[string][]api.PublicURL{public: urls}
	for _, tt := range []struct{ args, out, talk string }{
		{"manage get urls web", "https://web.me.example.org\nudp://web.me.example.org:53\n", ""},
		{"manage get urls lone", "", "lone is served by no ingress node"},
		{"manage get urls shut", "", "shut offers nothing to everybody: EXPOSE a port as public"},
		{"manage get urls shut --json", "[]\n", "shut offers nothing"},
	} {
		if code, out, talk := h.form(strings.Fields(tt.args)...); code != api.ExitOK || out != tt.out || !strings.Contains(talk, tt.talk) {
			t.Errorf("form %s: exit %d, %q, %q", tt.args, code, out, talk)
		}
	}
	_, out, _ := h.form("manage", "inspect", "web")
	for _, line := range []string{"public:      https://web.me.example.org by " + short(one) + " " + short(two) + "\n", "public:      udp://web.me.example.org:53 by " + short(one) + "\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("%q is missing in\n%s", line, out)
		}
	}
	var got []api.PublicURL
	_, out, _ = h.form("manage", "get", "urls", "web", "--json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || !reflect.DeepEqual(got, urls) {
		t.Errorf("%s: %v", out, err)
	}
	var whole api.Instance
	_, out, _ = h.form("manage", "inspect", "shut", "--json")
	if err := json.Unmarshal([]byte(out), &whole); err != nil || whole.Public == nil {
		t.Errorf("%s: %v", out, err)
	}
}
