package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

func TestMeshIsShown(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	node := stmt.KeyOf(testKey(3))
	m := api.Mesh{
		Interface: "form0", Address6: "fd00::1", Address: "10.129.0.1", Port: 51820, Guests: 2,
		Peers: []api.MeshPeer{
			{Name: "laptop", Kind: "device", Address6: "fd00::2", Path: api.PathNone},
			{Kind: "node", Node: node, Address6: "fd00::3", Address: "10.129.0.3", Path: api.PathPunched, Endpoint: "192.0.2.7:5",
				Latency: 0.01234, Handshake: &at, Received: 2048, Sent: 512},
		},
		Hosts: []api.MeshHost{{Host: node, Path: api.PathRelayed, Idle: 3.2}},
	}
	if got, want := meshText(m), "form0 fd00::1 10.129.0.1; 2 guests on the mesh through UDP port 51820"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := meshText(api.Mesh{Port: 7, Reason: "no right"}), "0 guests on the mesh through UDP port 7; no right"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var b bytes.Buffer
	showMesh(&b, m)
	for _, line := range []string{
		"PEER ADDRESS IPV4 PATH ENDPOINT LATENCY HANDSHAKE RECEIVED SENT",
		"laptop fd00::2 - none",
		node.String() + " fd00::3 10.129.0.3 punched 192.0.2.7:5 12.34ms 2026-01-02T03:04:05Z 2",
		"HOST PATH ENDPOINT LATENCY IDLE",
		node.String() + " relayed - - 3s",
	} {
		if !strings.Contains(strings.Join(strings.Fields(b.String()), " "), line) {
			t.Errorf("no %q in\n%s", line, b.String())
		}
	}
	b.Reset()
	showMesh(&b, api.Mesh{})
	if b.Len() > 0 {
		t.Errorf("nothing is shown as %q", b.String())
	}
}

// form net status asks the daemon for its part in the mesh.
func TestNetStatus(t *testing.T) {
	h := newHome(t)
	h.daemon.mesh = api.Mesh{Interface: "form7", Address6: "fd00::9", Peers: []api.MeshPeer{}, Hosts: []api.MeshHost{}, InTheWay: []string{}}
	for _, tt := range []struct {
		args []string
		want string
	}{{nil, "form7 fd00::9"}, {[]string{"--json"}, `"interface": "form7"`}} {
		code, out, stderr := h.form(append([]string{"net", "status"}, tt.args...)...)
		if code != 0 || !strings.Contains(out, tt.want) {
			t.Errorf("%v: exit %d, %s%s", tt.args, code, out, stderr)
		}
	}
}
