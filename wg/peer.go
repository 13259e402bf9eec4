package wg

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Key is a WireGuard key. The zero Key is nobody's.
type Key = wgtypes.Key

// Peer is somebody with whom the device shall talk.
type Peer struct {
	Key       Key
	Addresses []netip.Addr   // from which it talks, and at which it is reached
	Endpoint  netip.AddrPort // where it is; the zero value: it will come by itself
	Keepalive time.Duration  // how often to send something, in whole seconds; 0: never
	// Fixed: Endpoint is right wherever packets of the peer come from. A device that
	// has another one, as it goes by packets, gets it again within five minutes.
	Fixed bool
}

// maxKeepalive and maxAddresses bound a peer; the first is the protocol's.
const (
	maxKeepalive = 65535 * time.Second
	maxAddresses = 16
)

// check says what is wrong with p in a mesh of those addresses.
func (p Peer) check(space Space) error {
	switch {
	case p.Key == Key{}:
		return fmt.Errorf("peer without a key")
	case len(p.Addresses) > maxAddresses:
		return fmt.Errorf("peer %s: %d addresses, the limit is %d", p.Key, len(p.Addresses), maxAddresses)
	case p.Keepalive < 0 || p.Keepalive > maxKeepalive || p.Keepalive%time.Second != 0:
		return fmt.Errorf("peer %s: keepalive %s", p.Key, p.Keepalive)
	}
	for _, a := range p.Addresses {
		if !space.Contains(a) || a == space.DNS4() {
			return fmt.Errorf("peer %s: %s is no address in %s or %s", p.Key, a, space.Prefix6(), space.Prefix4())
		}
	}
	return nil
}

// Status is what a device says of a peer.
type Status struct {
	Peer
	Handshake time.Time // the last one; zero: none
	Received  int64     // bytes
	Sent      int64
}

// sessionLife is for how long the keys of one handshake are used at most
// (REJECT_AFTER_TIME of the protocol).
const sessionLife = 180 * time.Second

// alive says whether the peer may be talking at this moment.
func (s Status) alive(now time.Time) bool {
	return !s.Handshake.IsZero() && now.Sub(s.Handshake) < sessionLife
}

// routes is addresses as a device takes them.
func routes(addresses []netip.Addr) []net.IPNet {
	out := make([]net.IPNet, 0, len(addresses))
	for _, a := range addresses {
		out = append(out, net.IPNet{IP: a.AsSlice(), Mask: bytes.Repeat([]byte{0xff}, a.BitLen()/8)})
	}
	return out
}
