package wg

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// How often to look again whether a new key has had its handshake, and whether
// somebody who was alive still is. Asking a device costs half a second at ten
// thousand peers.
const (
	settleEvery = time.Second
	staleEvery  = 30 * time.Second
)

// patience is for how long a key that replaces another may take to show that it
// works before its addresses move to it all the same.
const patience = 15 * time.Second

// programmed is a peer of the device as this package has made it.
type programmed struct {
	addresses []netip.Addr   // sorted
	endpoint  netip.AddrPort // that was asked for last; packets may have moved it since
	keepalive time.Duration
	since     time.Time // when it was added
}

// step is one pass from what is programmed to what is wanted.
type step struct {
	changes  []wgtypes.PeerConfig // in this order: what takes an address away comes before what gives it
	next     map[Key]programmed   // what is programmed after them
	again    time.Duration        // when to look again at what waits for a handshake or for its end; 0: never
	problems []error              // what of it cannot be had
}

func (s *step) lookIn(d time.Duration) {
	if s.again == 0 || d < s.again {
		s.again = d
	}
}

// owners gives every wanted address to one peer: the one that has it and is
// alive, else the first in the order of want.
func owners(want []Peer, have map[Key]programmed, seen map[Key]Status, now time.Time) (map[netip.Addr]Key, []error) {
	owner, problems := map[netip.Addr]Key{}, []error(nil)
	for _, p := range want {
		for _, a := range p.Addresses {
			first, taken := owner[a]
			switch {
			case !taken:
				owner[a] = p.Key
			case first == p.Key:
			case slices.Contains(have[p.Key].addresses, a) && seen[p.Key].alive(now):
				owner[a] = p.Key
				problems = append(problems, fmt.Errorf("address %s of peer %s is held by %s", a, first, p.Key))
			default:
				problems = append(problems, fmt.Errorf("address %s of peer %s is held by %s", a, p.Key, first))
			}
		}
	}
	return owner, problems
}

// diff is pure: what to change so that the device, which has and has seen this,
// becomes what is wanted. Two peers of want never have one key.
func diff(want []Peer, have map[Key]programmed, seen map[Key]Status, now time.Time) step {
	owner, problems := owners(want, have, seen, now)
	s := step{next: make(map[Key]programmed, len(want)), problems: problems}
	if len(problems) > 0 {
		s.lookIn(staleEvery)
	}
	wanted := make(map[Key]bool, len(want))
	for _, p := range want {
		wanted[p.Key] = true
	}
	kept := s.retire(have, wanted, owner, seen, now)

	var losses, gains []wgtypes.PeerConfig
	for _, p := range want {
		old, known := have[p.Key]
		will := programmed{endpoint: p.Endpoint, keepalive: p.Keepalive, since: old.since}
		for _, a := range p.Addresses {
			if owner[a] == p.Key && kept[a] == (Key{}) {
				will.addresses = append(will.addresses, a)
			}
		}
		slices.SortFunc(will.addresses, netip.Addr.Compare)
		will.addresses = slices.Compact(will.addresses)
		if !known {
			will.since = now
		} else if at, looked := seen[p.Key]; p.Fixed {
			if looked {
				old.endpoint = at.Endpoint
			}
		} else if p.Endpoint != old.endpoint && seen[p.Key].alive(now) && p.Endpoint != seen[p.Key].Endpoint {
			// Its packets say better where it is than anybody's hint.
			will.endpoint = old.endpoint
			s.lookIn(staleEvery)
		}
		s.next[p.Key] = will
		loss, gain := change(p.Key, old, will, known)
		losses, gains = append(losses, loss...), append(gains, gain...)
	}
	s.changes = slices.Concat(s.changes, losses, gains)
	return s
}

// retire removes the peers that are no longer wanted, but for those whose
// addresses go to a key that has not shown yet that it works. It returns which
// addresses stay, and with whom.
func (s *step) retire(have map[Key]programmed, wanted map[Key]bool, owner map[netip.Addr]Key, seen map[Key]Status, now time.Time) map[netip.Addr]Key {
	kept := map[netip.Addr]Key{}
	for _, key := range slices.SortedFunc(maps.Keys(have), compareKeys) {
		if wanted[key] {
			continue
		}
		waits := false
		for _, a := range have[key].addresses {
			if heir, ok := owner[a]; ok && seen[key].alive(now) && untried(have, heir, seen, now) {
				kept[a], waits = key, true
			}
		}
		if waits {
			s.next[key] = have[key]
			s.lookIn(settleEvery)
			continue
		}
		s.changes = append(s.changes, wgtypes.PeerConfig{PublicKey: key, Remove: true})
	}
	return kept
}

// untried says whether a key is to be given more time for its first handshake.
func untried(have map[Key]programmed, key Key, seen map[Key]Status, now time.Time) bool {
	p, known := have[key]
	return !known || seen[key].Handshake.IsZero() && now.Sub(p.since) < patience
}

// change is what makes old into will: first what takes addresses away.
func change(key Key, old, will programmed, known bool) (loss, gain []wgtypes.PeerConfig) {
	// A peer that is gone by now must not come back as half of itself.
	c := wgtypes.PeerConfig{PublicKey: key, UpdateOnly: known}
	left := slices.DeleteFunc(slices.Clone(old.addresses), func(a netip.Addr) bool { return !slices.Contains(will.addresses, a) })
	if len(left) < len(old.addresses) {
		loss = append(loss, wgtypes.PeerConfig{PublicKey: key, UpdateOnly: true, ReplaceAllowedIPs: true, AllowedIPs: routes(left)})
	}
	gains := slices.DeleteFunc(slices.Clone(will.addresses), func(a netip.Addr) bool { return slices.Contains(left, a) })
	if c.AllowedIPs = routes(gains); len(gains) == 0 {
		c.AllowedIPs = nil
	}
	if will.endpoint != old.endpoint && will.endpoint.IsValid() {
		c.Endpoint = &net.UDPAddr{IP: will.endpoint.Addr().AsSlice(), Port: int(will.endpoint.Port())}
	}
	if will.keepalive != old.keepalive {
		c.PersistentKeepaliveInterval = &will.keepalive
	}
	if !known || len(gains) > 0 || c.Endpoint != nil || c.PersistentKeepaliveInterval != nil {
		gain = append(gain, c)
	}
	return loss, gain
}

func compareKeys(a, b Key) int { return bytes.Compare(a[:], b[:]) }
