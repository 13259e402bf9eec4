package link

import (
	"net/netip"
	"slices"
)

// Routes is pure: the routes to a mesh with those prefixes and peers on a machine
// that reaches foreign otherwise, and which of foreign are in the way. A prefix
// that overlaps with none is routed whole.
func Routes(prefixes []netip.Prefix, peers []netip.Addr, foreign []netip.Prefix) (routes, inTheWay []netip.Prefix) {
	for _, p := range prefixes {
		clashes := false
		for _, f := range foreign {
			if p.Overlaps(f) {
				clashes = true
				inTheWay = append(inTheWay, f)
			}
		}
		if !clashes {
			routes = append(routes, p)
			continue
		}
		for _, a := range peers {
			if p.Contains(a) && !slices.ContainsFunc(foreign, func(f netip.Prefix) bool { return f.Contains(a) }) {
				routes = append(routes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return sorted(routes), sorted(inTheWay)
}

func sorted(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(ps)
}
