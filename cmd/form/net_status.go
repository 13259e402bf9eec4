package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
)

// meshText is a node's part in formnet in a line.
func meshText(m api.Mesh) string {
	guests := fmt.Sprintf("%d guests on the mesh through UDP port %d", m.Guests, m.Port)
	if m.Interface == "" {
		return strings.TrimSuffix(guests+"; "+m.Reason, "; ")
	}
	text := m.Interface + " " + m.Address6
	if m.Address != "" {
		text += " " + m.Address
	}
	if m.Reason != "" {
		text += " (" + m.Reason + ")"
	}
	return text + "; " + guests
}

// showMesh lists the peers of the node's own interface, and the hosts with which
// its guests talk.
func showMesh(w io.Writer, m api.Mesh) {
	var rows [][]string
	for _, p := range m.Peers {
		name := p.Name
		if p.Kind == "node" {
			name = p.Node.String()
		}
		rows = append(rows, []string{name, p.Address6, p.Address, p.Path, p.Endpoint, latencyText(p.Latency), since(p.Handshake),
			cli.Bytes(uint64(p.Received)), cli.Bytes(uint64(p.Sent))})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		cli.Table(w, []string{"PEER", "ADDRESS", "IPV4", "PATH", "ENDPOINT", "LATENCY", "HANDSHAKE", "RECEIVED", "SENT"}, rows)
	}
	rows = nil
	for _, h := range m.Hosts {
		rows = append(rows, []string{h.Host.String(), h.Path, h.Endpoint, latencyText(h.Latency), time.Duration(h.Idle * float64(time.Second)).Round(time.Second).String()})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		cli.Table(w, []string{"HOST", "PATH", "ENDPOINT", "LATENCY", "IDLE"}, rows)
	}
}

func latencyText(seconds float64) string {
	if seconds <= 0 {
		return ""
	}
	return time.Duration(seconds * float64(time.Second)).Round(10 * time.Microsecond).String()
}
