package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
)

// status is the node's part in the mesh at this moment.
func (m *mesh) status() api.Mesh {
	m.mu.Lock()
	peers, inTheWay := m.peers, m.inTheWay
	out := api.Mesh{
		Key: m.key.PublicKey().String(), Address6: m.address6.String(), Port: int(m.socket.Port()), Guests: len(m.stations),
		InTheWay: []string{}, Peers: []api.MeshPeer{}, Hosts: []api.MeshHost{}, Reason: m.trouble(),
	}
	if m.host != nil && !m.gone {
		out.Interface = m.host.name
	}
	if m.address4.IsValid() {
		out.Address = m.address4.String()
	}
	m.mu.Unlock()
	for _, p := range inTheWay {
		out.InTheWay = append(out.InTheWay, p.String())
	}
	paths := map[netip.AddrPort]carrier.Path{}
	for _, p := range m.carrier.Paths() {
		paths[carrier.Address(p.Host)] = p
		out.Hosts = append(out.Hosts, meshHost(p))
	}
	if out.Interface == "" {
		return out
	}
	told := map[wg.Key]wg.Status{}
	have, err := m.host.Peers()
	if err != nil {
		out.Reason = err.Error()
	}
	for _, s := range have {
		told[s.Key] = s
	}
	for _, p := range peers {
		s := told[wg.Key(p.Key)]
		w := api.MeshPeer{
			Name: p.Name, Kind: "device", Owner: p.Owner, Key: wg.Key(p.Key).String(), Address6: p.Address6.String(),
			Path: api.PathNone, Received: s.Received, Sent: s.Sent,
		}
		if p.IsNode() {
			w.Kind, w.Node = "node", p.Node
			w.Owner = stmt.Key{}
		}
		if p.Address4.IsValid() {
			w.Address = p.Address4.String()
		}
		if !s.Handshake.IsZero() {
			at := s.Handshake.UTC()
			w.Handshake = &at
		}
		at := s.Endpoint
		if p.Host != "" {
			at = carrier.Address(p.Host) // wherever its last packet came from
		}
		if path, ok := paths[at]; ok {
			h := meshHost(path)
			w.Path, w.Endpoint, w.Latency = h.Path, h.Endpoint, h.Latency
		} else if p.Host == "" && s.Endpoint.IsValid() && !carrier.IsHost(s.Endpoint) {
			w.Path, w.Endpoint = api.PathDirect, s.Endpoint.String()
		}
		out.Peers = append(out.Peers, w)
	}
	return out
}

// trouble is what is wrong with the machine's own interface, or why there is none;
// m.mu is held.
func (m *mesh) trouble() string {
	switch {
	case m.host == nil:
		return m.none
	case m.gone:
		return "the interface " + m.host.name + " was removed"
	case m.linkErr != nil:
		return m.linkErr.Error()
	}
	return ""
}

func meshHost(p carrier.Path) api.MeshHost {
	out := api.MeshHost{Path: pathWord(p), Idle: p.Idle.Seconds()}
	if key, err := stmt.KeyOfPeerID(string(p.Host)); err == nil {
		out.Host = key
	}
	if p.Straight.IsValid() {
		out.Endpoint, out.Latency = p.Straight.String(), p.RTT.Seconds()
	}
	return out
}

func pathWord(p carrier.Path) string {
	switch {
	case p.Straight.IsValid() && p.Punched:
		return api.PathPunched
	case p.Straight.IsValid():
		return api.PathDirect
	case p.Stream && p.Relayed:
		return api.PathRelayed
	case p.Stream:
		return api.PathStream
	}
	return api.PathNone
}

// pathCounts is how many hosts are reached by each kind of path.
func (m *mesh) pathCounts() map[string]int {
	out := map[string]int{api.PathDirect: 0, api.PathPunched: 0, api.PathStream: 0, api.PathRelayed: 0, api.PathNone: 0}
	for _, p := range m.carrier.Paths() {
		out[pathWord(p)]++
	}
	return out
}

// check is doctor's word on the mesh.
func (m *mesh) check() api.Check {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := api.Check{Name: "mesh", State: "ok"}
	switch {
	case m.host == nil:
		c.Detail = m.none
		if m.wanted {
			c.Fix = "run formd as root, or give it CAP_NET_ADMIN and /dev/net/tun, if the machine itself is to be on the mesh; guests are in any case"
		}
	case m.gone:
		c.State, c.Detail, c.Fix = "fail", m.trouble(), "restart formd"
	case m.linkErr != nil:
		c.State, c.Detail, c.Fix = "fail", m.linkErr.Error(), "look at ip address and ip route; it is tried again every half minute"
	case len(m.inTheWay) > 0:
		var list []string
		for _, p := range m.inTheWay {
			list = append(list, p.String())
		}
		c.State, c.Detail = "warn", "this machine reaches other things by addresses of the mesh: "+strings.Join(list, " ")
		c.Fix = "peers there are reached by their IPv6 addresses; nothing else is lost"
	default:
		c.Detail = fmt.Sprintf("%s, %s, has %d peers", m.host.name, m.host.kind, len(m.peers))
		if problems := m.host.mesh.Problems(); len(problems) > 0 {
			c.State, c.Detail = "warn", problems[0].Error()
			c.Fix = "form net status shows the peers"
		}
	}
	return c
}
