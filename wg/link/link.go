//go:build linux

// Package link gives a mesh's interface its addresses and routes, and finds out
// where they would be in the way of what this machine has already.
//
// Guarantees: [Set] changes only the interface it is given, by differences, and
// may be repeated; a route never covers addresses that this machine reaches, or
// is, by another interface: where the mesh's prefix does, the peers' own addresses
// are routed one by one, and those in the way not at all.
//
// Not guaranteed: that a route that somebody adds later is respected before the
// next Set.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config is what an interface should have.
type Config struct {
	Name      string
	MTU       int
	Addresses []netip.Addr   // its own; what is sent has the first of its kind as its source
	Prefixes  []netip.Prefix // where peers are
	Peers     []netip.Addr   // known ones, for where a prefix cannot be routed whole
}

// Set makes the interface have what c says, and brings it up. It returns the
// prefixes that this machine reaches otherwise and that are in the way, also
// when all else is in order.
func Set(c Config) (inTheWay []netip.Prefix, err error) {
	dev, err := netlink.LinkByName(c.Name)
	if err != nil {
		return nil, fmt.Errorf("link: interface %s: %w", c.Name, err)
	}
	foreign, err := foreignRoutes(dev)
	if err != nil {
		return nil, fmt.Errorf("link: routes of this machine: %w", err)
	}
	routes, inTheWay := Routes(c.Prefixes, c.Peers, foreign)
	if err := netlink.LinkSetMTU(dev, c.MTU); err != nil {
		return inTheWay, fmt.Errorf("link: MTU of %s: %w", c.Name, err)
	}
	if err := setAddresses(dev, c.Addresses); err != nil {
		return inTheWay, fmt.Errorf("link: addresses of %s: %w", c.Name, err)
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return inTheWay, fmt.Errorf("link: bring up %s: %w", c.Name, err)
	}
	if err := setRoutes(dev, routes, c.Addresses); err != nil {
		return inTheWay, fmt.Errorf("link: routes of %s: %w", c.Name, err)
	}
	return inTheWay, nil
}

func setAddresses(dev netlink.Link, want []netip.Addr) error {
	have, err := netlink.AddrList(dev, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	missing := slices.Clone(want)
	for _, a := range have {
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok || addr.IsLinkLocalUnicast() {
			continue
		}
		ones, bits := a.Mask.Size()
		if i := slices.Index(missing, addr.Unmap()); i >= 0 && ones == bits {
			missing = slices.Delete(missing, i, i+1)
		} else if err := netlink.AddrDel(dev, &a); err != nil {
			return err
		}
	}
	for _, a := range missing {
		// Nobody else is on this link: there is nothing to wait for before it is used.
		if err := netlink.AddrAdd(dev, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return nil
}

func setRoutes(dev netlink.Link, want []netip.Prefix, own []netip.Addr) error {
	have, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: dev.Attrs().Index, Protocol: protocol},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return err
	}
	missing := slices.Clone(want)
	for _, r := range have {
		p, ok := prefixOf(r.Dst)
		if i := slices.Index(missing, p); ok && i >= 0 && r.Src.Equal(sourceOf(p, own)) {
			missing = slices.Delete(missing, i, i+1)
		} else if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	for _, p := range missing {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipnet(p), Protocol: protocol, Scope: netlink.SCOPE_LINK, Src: sourceOf(p, own)}); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// sourceOf is what packets to p have as their source: of several addresses the
// kernel would choose one by when each was added.
func sourceOf(p netip.Prefix, own []netip.Addr) net.IP {
	for _, a := range own {
		if a.BitLen() == p.Addr().BitLen() {
			return a.AsSlice()
		}
	}
	return nil
}

// protocol marks the routes made here (rtnetlink(7): above 4 it is the user's).
const protocol = 0xf0

// foreignRoutes is where this machine reaches what is not on dev: routes of the
// main table and addresses of its own, without the default route.
func foreignRoutes(dev netlink.Link) ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && r.LinkIndex != dev.Attrs().Index && p.Bits() > 0 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			out = append(out, p)
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex != dev.Attrs().Index && !addr.IsLinkLocalUnicast() {
			addr = addr.Unmap()
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return out, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if a = a.Unmap(); a.BitLen() != bits {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
