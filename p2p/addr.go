package p2p

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/libp2p/go-libp2p/core/host"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ipPort splits a listen address of the two forms this package serves, and
// says whether it is one.
func ipPort(a ma.Multiaddr) (ip netip.Addr, port int, ok bool) {
	if len(a) != 2 && len(a) != 3 {
		return ip, 0, false
	}
	switch a[0].Protocol().Code {
	case ma.P_IP4, ma.P_IP6:
	default:
		return ip, 0, false
	}
	tcp := len(a) == 2 && a[1].Protocol().Code == ma.P_TCP
	quic := len(a) == 3 && a[1].Protocol().Code == ma.P_UDP && a[2].Protocol().Code == ma.P_QUIC_V1
	if !tcp && !quic {
		return ip, 0, false
	}
	ip, err := netip.ParseAddr(a[0].Value())
	if err != nil {
		return ip, 0, false
	}
	port, err = strconv.Atoi(a[1].Value())
	return ip, port, err == nil
}

// withPort replaces the port of a listen address.
func withPort(a ma.Multiaddr, port int) (ma.Multiaddr, error) {
	c, err := ma.NewComponent(a[1].Protocol().Name, strconv.Itoa(port))
	if err != nil {
		return nil, fmt.Errorf("p2p: port %d: %w", port, err)
	}
	out := ma.Join(a[0].Multiaddr(), c.Multiaddr())
	for _, rest := range a[2:] {
		out = ma.Join(out, rest.Multiaddr())
	}
	return out, nil
}

// listen binds addresses one by one, so that each failure is named. Those with
// port 0 share one free port per IP, TCP and QUIC alike.
func listen(h host.Host, addrs []ma.Multiaddr) error {
	const attempts = 16 // a free TCP port may be a taken UDP port
	for try := 1; ; try++ {
		err := listenOnce(h, addrs)
		if err == nil || try == attempts || !errors.Is(err, errPortClash) {
			return err
		}
		closeListeners(h)
	}
}

// errPortClash: a port that was free for one transport is taken for another.
var errPortClash = errors.New("the free port picked is taken for the other transport")

func listenOnce(h host.Host, addrs []ma.Multiaddr) error {
	chosen := make(map[netip.Addr]int)
	for _, a := range addrs {
		ip, port, _ := ipPort(a)
		p, picked := chosen[ip]
		if picked = picked && port == 0; picked {
			var err error
			if a, err = withPort(a, p); err != nil {
				return err
			}
		}
		if err := h.Network().Listen(a); err != nil {
			if picked {
				err = errors.Join(errPortClash, err)
			}
			return &ListenError{Addr: a.String(), Err: err}
		}
		if port == 0 && !picked {
			chosen[ip] = boundPort(h, ip, a)
		}
	}
	return nil
}

// boundPort finds the port that the listener of a, given with port 0, got.
func boundPort(h host.Host, ip netip.Addr, a ma.Multiaddr) int {
	for _, l := range h.Network().ListenAddresses() {
		lip, port, ok := ipPort(l)
		if ok && lip == ip && l[1].Protocol().Code == a[1].Protocol().Code {
			return port
		}
	}
	return 0
}

func closeListeners(h host.Host) {
	if c, ok := h.Network().(interface{ ListenClose(...ma.Multiaddr) }); ok {
		c.ListenClose(h.Network().ListenAddresses()...)
	}
}

// widestFirst orders addresses by how widely they can be reached, the same ones
// always alike, without repetition, and leaves out what is over MaxAddrs.
func widestFirst(addrs []ma.Multiaddr) []ma.Multiaddr {
	out := slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool {
		return len(a) == 0 || a[0].Protocol().Code == ma.P_CIRCUIT // "through a relay", with none named
	})
	slices.SortFunc(out, func(a, b ma.Multiaddr) int {
		return cmp.Or(cmp.Compare(reach(a), reach(b)), cmp.Compare(a.String(), b.String()))
	})
	out = slices.CompactFunc(out, func(a, b ma.Multiaddr) bool { return a.Equal(b) })
	return out[:min(len(out), MaxAddrs)]
}

// reach ranks an address: 0 from anywhere, then through a relay, on the LAN, on
// the link, and 4 on this machine.
func reach(a ma.Multiaddr) int {
	switch {
	case manet.IsIPLoopback(a):
		return 4
	case isRelayAddr(a):
		return 1
	case manet.IsPublicAddr(a):
		return 0
	case manet.IsPrivateAddr(a) && !manet.IsIP6LinkLocal(a):
		return 2
	}
	return 3
}

// inside says whether an address is in one of the prefixes.
func inside(prefixes []netip.Prefix, a ma.Multiaddr) bool {
	if len(prefixes) == 0 || isRelayAddr(a) || len(a) == 0 {
		return false
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return false // a name, which is resolved later
	}
	at, ok := netip.AddrFromSlice(ip)
	return ok && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(at.Unmap()) })
}

// outside leaves out the addresses in the prefixes.
func outside(prefixes []netip.Prefix, addrs []ma.Multiaddr) []ma.Multiaddr {
	if len(prefixes) == 0 {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return inside(prefixes, a) })
}
