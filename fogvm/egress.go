package fogvm

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// nowhere are addresses that a guest never reaches through its host, whatever is
// allowed: they mean the guest itself, or its mesh, or nobody.
var nowhere = prefixes("0.0.0.0/8", "127.0.0.0/8", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
	"::/128", "::1/128", "ff00::/8")

// reserved are the addresses that are not the public internet's: private and
// shared networks, the mesh, link-local ones and what clouds answer metadata at.
// Of IPv6 all that is not 2000::/3, and what leads to IPv4 from there.
var reserved = prefixes("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
	"168.63.129.16/32", // Azure
	"192.0.0.0/24",     // Oracle, among others
	"::/3", "2001::/32", "2002::/16", "4000::/2", "8000::/1")

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// mayReach says whether a guest may open a connection to an address. host are the
// addresses of this machine, each with its network: what is on a wire with the
// host trusts it more than strangers.
func mayReach(to netip.Addr, allowed, host []netip.Prefix) bool {
	to = to.Unmap().WithZone("")
	switch {
	case !to.IsValid() || within(nowhere, to):
		return false
	case within(allowed, to):
		return true
	}
	return !within(reserved, to) && !within(host, to)
}

// hostNetworks lists the addresses of this machine at this moment.
func hostNetworks() ([]netip.Prefix, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this machine: %w", err)
	}
	var out []netip.Prefix
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if addr, ok := netip.AddrFromSlice(n.IP); ok {
			ones, _ := n.Mask.Size()
			out = append(out, netip.PrefixFrom(addr.Unmap(), ones))
		}
	}
	return out, nil
}
