// Package wgtest tests WireGuard devices: what each has to do, and a network in
// memory between them.
package wgtest

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/formthefog/formation/wg"
)

// Conform holds a device without peers against [wg.Fake]: after any changes both
// have the same peers.
func Conform(t *testing.T, dev wg.Device) {
	t.Helper()
	var fake wg.Fake
	rapid.Check(t, func(t *rapid.T) {
		changes := rapid.SliceOfN(rapid.Custom(drawChange), 1, 8).Draw(t, "changes")
		for _, d := range []wg.Device{&fake, dev} {
			if err := d.Configure(changes); err != nil {
				t.Fatalf("%T: %v", d, err)
			}
		}
		if want, got := peersOf(t, &fake), peersOf(t, dev); got != want {
			t.Fatalf("after %v the device has\n%s\nwant\n%s", changes, got, want)
		}
	})
}

func drawChange(t *rapid.T) wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{PublicKey: wg.Key{byte(rapid.IntRange(1, 5).Draw(t, "peer"))}}
	if c.Remove = rapid.IntRange(0, 4).Draw(t, "remove") == 0; c.Remove {
		return c
	}
	c.UpdateOnly = rapid.Bool().Draw(t, "update only")
	c.ReplaceAllowedIPs = rapid.Bool().Draw(t, "replace")
	for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(1, 6), 0, 3, rapid.ID[int]).Draw(t, "addresses") {
		a := netip.AddrFrom4([4]byte{10, 128, 1, byte(n)})
		if n > 3 {
			a = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)})
		}
		c.AllowedIPs = append(c.AllowedIPs, Routes(a)...)
	}
	if rapid.Bool().Draw(t, "endpoint") {
		c.Endpoint = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), rapid.Uint16Range(1, 9).Draw(t, "port")))
	}
	if rapid.Bool().Draw(t, "keepalive") {
		d := time.Duration(rapid.IntRange(0, 65535).Draw(t, "seconds")) * time.Second
		c.PersistentKeepaliveInterval = &d
	}
	return c
}

func peersOf(t *rapid.T, d wg.Device) string {
	peers, err := d.Peers()
	if err != nil {
		t.Fatal(err)
	}
	lines := make([]string, len(peers))
	for i, p := range peers {
		lines[i] = fmt.Sprintf("%s %v %v %s\n", p.Key, p.Addresses, p.Endpoint, p.Keepalive)
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// Routes is addresses as changes of a device name them.
func Routes(addresses ...netip.Addr) []net.IPNet {
	var out []net.IPNet
	for _, a := range addresses {
		out = append(out, net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())})
	}
	return out
}
