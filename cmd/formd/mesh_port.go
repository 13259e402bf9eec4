package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/wg/carrier"
)

// freeTries is how often a free UDP port is looked for whose TCP port is free too.
const freeTries = 16

// openPort opens the one UDP port of WireGuard and QUIC, and the node that shares
// it. Where nothing says which ports, the first free ones from the default on are
// taken.
func (d *formd) openPort(c p2p.Config) error {
	if len(c.Listen) > 0 {
		return d.openListed(c)
	}
	var err error
	var taken *p2p.ListenError
	for port := config.DefaultPort; port < config.DefaultPort+portTries; port++ {
		udp := port
		if d.cfg.MeshPort != 0 {
			udp = d.cfg.MeshPort
		}
		c.Listen = []string{fmt.Sprintf("/ip4/0.0.0.0/tcp/%d", port), fmt.Sprintf("/ip4/0.0.0.0/udp/%d/quic-v1", udp)}
		err = d.openShared(c, share{at: netip.IPv4Unspecified(), port: uint16(udp), index: 1})
		if !errors.As(err, &taken) || d.cfg.MeshPort != 0 && strings.Contains(taken.Addr, "/udp/") {
			if err == nil && port != config.DefaultPort {
				d.warn(fmt.Sprintf("port %d is taken: listening on %d; name a free one by --listen", config.DefaultPort, port))
			}
			return err
		}
	}
	return err
}

// openListed opens the ports that were asked for. The first UDP port of them is
// the one that is shared.
func (d *formd) openListed(c p2p.Config) error {
	s, quics := findShare(c.Listen, d.cfg.MeshPort)
	if quics > 1 {
		d.warn(fmt.Sprintf("formnet has the port of %s alone; the other QUIC addresses carry none of it", c.Listen[s.index]))
	}
	listed := c.Listen
	for try := 1; ; try++ {
		c.Listen = listed
		err := d.openShared(c, s)
		var taken *p2p.ListenError
		if err == nil || s.port != 0 || try == freeTries || !errors.As(err, &taken) || slices.Contains(listed, taken.Addr) {
			return err
		}
	}
}

// share is which UDP port WireGuard and QUIC have in common.
type share struct {
	at    netip.Addr
	port  uint16 // 0: any, and the same for TCP at this address
	index int    // of its multiaddr; -1: QUIC has none
}

// findShare chooses it from multiaddrs that were validated, and says how many of
// them are QUIC's.
func findShare(listen []string, meshPort int) (s share, quics int) {
	s = share{index: -1, port: uint16(meshPort)}
	for i, l := range listen {
		at, port, quic := listenParts(l)
		if i == 0 {
			s.at = at
		}
		if !quic {
			continue
		}
		if quics++; quics == 1 {
			s = share{at: at, port: uint16(port), index: i}
			if port == 0 {
				s.port = uint16(meshPort)
			}
		}
	}
	return s, quics
}

// listenParts takes a validated multiaddr of --listen apart.
func listenParts(l string) (at netip.Addr, port int, quic bool) {
	parts := strings.Split(l, "/") // "", ip4, ADDRESS, tcp, PORT
	at, err := netip.ParseAddr(parts[2])
	if err == nil {
		port, err = strconv.Atoi(parts[4])
	}
	if err != nil {
		panic("listen address was not validated: " + l)
	}
	return at, port, parts[3] == "udp"
}

// onPort is listen with the port of the share instead of 0.
func (s share) onPort(listen []string, port uint16) []string {
	out := slices.Clone(listen)
	for i, l := range out {
		at, p, quic := listenParts(l)
		if p == 0 && at == s.at && (i == s.index || !quic && s.index >= 0) {
			parts := strings.Split(l, "/")
			parts[4] = strconv.Itoa(int(port))
			out[i] = strings.Join(parts, "/")
		}
	}
	return out
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ip4"
	}
	return "ip6"
}

// openShared opens the socket, and a node whose QUIC has its share of it.
func (d *formd) openShared(c p2p.Config, s share) error {
	socket, err := carrier.Listen(s.port, s.at)
	if err != nil {
		return &p2p.ListenError{Addr: fmt.Sprintf("/%s/%s/udp/%d", family(s.at), s.at, s.port), Err: err}
	}
	c.Listen, c.ListenUDP = s.onPort(c.Listen, socket.Port()), socket.ListenUDP
	node, err := p2p.New(c)
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	d.node, d.mesh.socket = node, socket
	return nil
}
